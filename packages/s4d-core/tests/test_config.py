"""Configurations: sizes of the named models, the trip through JSON, and its errors."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import s4d_core
from s4d_core.checkpoint import empty_model
from s4d_core.strict import from_plain, to_plain


def meta_model(config: s4d_core.Sparse4DConfig) -> s4d_core.Sparse4D:
    with torch.device("meta"):
        return s4d_core.Sparse4D(config, torch.zeros(config.num_anchors, 11))


def test_r50_has_the_published_size() -> None:
    model = meta_model(s4d_core.get_config("sparse4dv3_r50"))
    assert sum(p.numel() for p in model.parameters()) == 48_156_232
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 47_925_703
    assert len(model.state_dict()) == 819


def test_tiny_is_small() -> None:
    model = meta_model(s4d_core.get_config("sparse4dv3_tiny"))
    assert sum(p.numel() for p in model.parameters()) <= 1_900_000
    assert model.config.num_cameras == 6 and model.config.num_classes == 10


@pytest.mark.parametrize("name", s4d_core.list_models())
def test_every_named_config_survives_json(name: str) -> None:
    config = s4d_core.get_config(name)
    text = json.dumps(config.to_dict())
    assert s4d_core.Sparse4DConfig.from_dict(json.loads(text)) == config
    assert config.name == name


def test_unknown_field_names_the_nearest() -> None:
    data = s4d_core.get_config("sparse4dv3_tiny").to_dict()
    data["num_anchor"] = data.pop("num_anchors")
    with pytest.raises(s4d_core.ConfigError, match="did you mean 'num_anchors'"):
        s4d_core.Sparse4DConfig.from_dict(data)
    data = s4d_core.get_config("sparse4dv3_tiny").to_dict()
    data["backbone"]["block"] = "basics"
    with pytest.raises(s4d_core.ConfigError, match=r"config\.backbone\.block.*'basic'"):
        s4d_core.Sparse4DConfig.from_dict(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("num_anchors", "many", "expected int, got 'many'"),
        ("num_anchors", True, "expected int, got True"),
        ("num_temporal", 900, "num_temporal: expected 0..299"),
        ("num_output", 0, "num_output: expected 1..300"),
        ("embed_dims", 100, "not a multiple of 8 groups"),
        ("class_names", [], "class_names: expected at least one"),
        ("image.size", [256], "expected 2 values, got 1"),
        ("image.size", 256, "expected a list"),
        ("image.std", [1.0, 0.0, 1.0], "image.std: expected positive"),
        ("decoder.num_single_frame", 5, "num_single_frame: expected 1..4"),
        ("decoder.num_single_frame", 4, "num_single_frame: expected fewer than num_layers 4"),
        ("num_temporal", 0, "got 1 with num_temporal 0"),
        ("decoder.dropout", 1.0, "decoder.dropout: expected 0..1"),
        ("anchor_encoder.dims", [1, 2, 3, 4], "dims sum to 10, expected embed_dims 64"),
        ("backbone.frozen_stages", 5, "frozen_stages: expected -1..4"),
        ("score_order", "other", "expected one of 'reference', 'aligned'"),
        ("neck", [], "expected a mapping"),
    ],
)
def test_impossible_values_are_named(path: str, value: object, message: str) -> None:
    data = s4d_core.get_config("sparse4dv3_tiny").to_dict()
    target = data
    *parents, leaf = path.split(".")
    for parent in parents:
        target = target[parent]
    target[leaf] = value
    with pytest.raises(s4d_core.ConfigError) as caught:
        s4d_core.Sparse4DConfig.from_dict(data)
    assert message in str(caught.value)


def test_missing_field_and_missing_depth() -> None:
    with pytest.raises(s4d_core.ConfigError, match="'name' is missing"):
        s4d_core.Sparse4DConfig.from_dict({})
    config = s4d_core.Sparse4DConfig.from_dict({"name": "x", "depth": None, "score_threshold": 1})
    assert config.depth is None and config.score_threshold == 1.0
    assert (
        empty_model(s4d_core.get_config("sparse4dv3_tiny").replace(depth=None)).depth_branch is None
    )


def test_unknown_model_name_suggests_one() -> None:
    with pytest.raises(s4d_core.ConfigError, match="did you mean 'sparse4dv3_r50'"):
        s4d_core.build_model("sparse4d_r50")


@given(
    size=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    decay=st.floats(0, 1),
    names=st.lists(st.text(min_size=1), min_size=1, max_size=12).map(tuple),
    order=st.sampled_from(["reference", "aligned"]),
    threshold=st.none() | st.floats(0, 1),
)
def test_any_config_survives_json(
    size: tuple, decay: float, names: tuple, order: str, threshold: float | None
) -> None:
    config = s4d_core.Sparse4DConfig(
        name="x",
        image=s4d_core.ImageConfig(size=size),
        confidence_decay=decay,
        class_names=names,
        score_order=order,
        score_threshold=threshold,
    )
    plain = json.loads(json.dumps(to_plain(config)))
    assert from_plain(s4d_core.Sparse4DConfig, plain) == config


def test_models_are_listed_by_pattern() -> None:
    assert s4d_core.list_models("*r101*") == [n for n in s4d_core.list_models() if "r101" in n]
    assert s4d_core.list_models("nothing*") == []


def test_all_classes_of_an_instance_can_be_among_the_outputs() -> None:
    tiny = s4d_core.get_config("sparse4dv3_tiny")
    assert tiny.replace(decode_classes="all", num_output=3000).num_output == 3000
    with pytest.raises(s4d_core.ConfigError, match=r"num_output: expected 1\.\.3000"):
        tiny.replace(decode_classes="all", num_output=3001)
