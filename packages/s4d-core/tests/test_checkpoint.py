"""Checkpoint folders, and conversion of published files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import golden
from test_config import meta_model
from torch import Tensor

import s4d_core
from s4d_core.checkpoint import empty_model


def published_table(file: str) -> dict[str, tuple[list[int], str]]:
    """name -> (shape, "param requires_grad" | "param frozen" | "buffer")."""
    table = {}
    folder = "v1_v2" if "_v" in file else "v3"
    for line in golden(folder, file).read_text().splitlines():
        if line and not line.startswith("#"):
            name, shape, _, kind = line.split("\t")
            table[name] = (json.loads(shape), kind)
    return table


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("state_dict_keys.txt", s4d_core.get_config("sparse4dv3_r50")),
        ("state_dict_keys_horizon.txt", s4d_core.get_config("sparse4dv3_r50")),
        ("state_dict_keys_small.txt", s4d_core.reduced_config()),
        ("state_dict_keys_v2.txt", s4d_core.get_config("sparse4dv2_r50_256x704")),
        ("state_dict_keys_v1.txt", s4d_core.get_config("sparse4dv1_r101_h4_640x1600")),
        ("state_dict_keys_v1.txt", s4d_core.get_config("sparse4dv1_r101_h1_640x1600")),
    ],
    ids=["sparseend2end", "horizon", "small", "v2", "v1_h4", "v1_h1"],
)
def test_names_and_shapes_are_the_published_ones(
    file: str, config: s4d_core.Sparse4DConfig
) -> None:
    model = meta_model(config)
    state, parameters = model.state_dict(), dict(model.named_parameters())
    names = s4d_core.reference_names(state, config)
    mine, published = {}, published_table(file)
    for ours, theirs in names.items():
        kind = "buffer"
        if ours in parameters:
            kind = "param requires_grad" if parameters[ours].requires_grad else "param frozen"
        if file == "state_dict_keys_v1.txt" and re.search(r"(bn\d|downsample\.1)\.\w+$", ours):
            kind = published[theirs][1]  # norms are frozen by the recipe, not by the model
        mine[theirs] = (list(state[ours].shape), kind)
    if config.queue is None and file == "state_dict_keys_v1.txt":
        published = {k: v for k, v in published.items() if "temp_module" not in k}
    assert mine == published


def small_config() -> s4d_core.Sparse4DConfig:
    return s4d_core.get_config("sparse4dv3_tiny").replace(
        num_anchors=20, num_temporal=10, num_output=15
    )


def published_weights(config: s4d_core.Sparse4DConfig) -> dict[str, Tensor]:
    """Random weights under the published names."""
    state = s4d_core.build_model(config).state_dict()
    names = s4d_core.reference_names(state, config)
    return {
        names[name]: torch.rand_like(v) if v.is_floating_point() else v for name, v in state.items()
    }


def test_save_and_load(tmp_path: Path) -> None:
    model = s4d_core.build_model(small_config().replace(refine_yaw=False))
    folder = s4d_core.save_checkpoint(model, tmp_path / "a" / "b")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = s4d_core.load_checkpoint(folder)
    assert loaded.config == model.config and not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    s4d_core.save_checkpoint(model, folder)  # again: replaces the files


@pytest.mark.parametrize(
    ("source", "refine_yaw", "resize_filter"),
    [("horizon", True, "pillow_bicubic"), ("sparseend2end", False, "cv2_linear")],
)
@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "model", "module", "prefixed"])
def test_convert(
    tmp_path: Path, source: str, refine_yaw: bool, resize_filter: str, wrapped: str
) -> None:
    weights = published_weights(small_config())
    content: dict = {"meta": {"epoch": 3}, "state_dict": weights, "optimizer": {}}
    if wrapped == "plain":
        content = weights
    elif wrapped in ("model", "module"):
        content = {wrapped: weights}
    elif wrapped == "prefixed":
        content["state_dict"] = {"module." + name: value for name, value in weights.items()}
    torch.save(content, tmp_path / "x.pth")
    s4d_core.convert_checkpoint(tmp_path / "x.pth", tmp_path / "out", source, small_config())
    model = s4d_core.load_checkpoint(tmp_path / "out")
    assert model.config.refine_yaw is refine_yaw
    assert model.config.legacy_yaw_order is True
    assert model.config.image.resize_filter == resize_filter
    names = s4d_core.reference_names(model.state_dict(), model.config)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[names[name]]), name


def test_convert_names_what_is_wrong(tmp_path: Path) -> None:
    weights = published_weights(small_config())

    def convert(content: object, **options: object) -> str:
        torch.save(content, tmp_path / "x.pth")
        options.setdefault("model", small_config())
        with pytest.raises(s4d_core.CheckpointError) as caught:
            s4d_core.convert_checkpoint(tmp_path / "x.pth", tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "no weights found" in convert({"epoch": 3})
    assert "no weights found" in convert([1, 2])
    assert "unknown source 'horizn'; did you mean 'horizon'?" in convert(weights, source="horizn")

    message = convert({"fc.weight": torch.zeros(3), "fc.bias": torch.zeros(3)})
    assert "is not a checkpoint of sparse4dv3_tiny" in message
    assert "weights missing (" in message and "2 unexpected (fc.bias, fc.weight)" in message

    less = {k: v for k, v in weights.items() if k != "head.fc_after.weight"}
    assert "1 weights missing (head.fc_after.weight), 0 unexpected" in convert(less)

    other = dict(weights) | {"head.fc_after.weight": torch.zeros(2, 3)}
    assert "head.fc_after.weight (2, 3) instead of (64, 128)" in convert(other)

    nan = dict(weights) | {"head.fc_after.weight": torch.full((64, 128), torch.nan)}
    assert "head.fc_after.weight holds NaN" in convert(nan)


def test_convert_does_not_run_code(tmp_path: Path) -> None:
    torch.save({"state_dict": s4d_core.get_config}, tmp_path / "x.pth")
    with pytest.raises(s4d_core.CheckpointError, match="tensors and plain data"):
        s4d_core.convert_checkpoint(tmp_path / "x.pth", tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken", bytes(2000)])
def test_convert_of_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(s4d_core.CheckpointError, match=r"x\.pth"):
        s4d_core.convert_checkpoint(tmp_path / "x.pth", tmp_path / "out")
    with pytest.raises(s4d_core.CheckpointError, match="no such file"):
        s4d_core.convert_checkpoint(tmp_path / "y.pth", tmp_path / "out")


def test_load_names_what_is_wrong(tmp_path: Path) -> None:
    folder = s4d_core.save_checkpoint(s4d_core.build_model(small_config()), tmp_path / "c")

    def problem(error: type[Exception] = s4d_core.CheckpointError) -> str:
        with pytest.raises(error) as caught:
            s4d_core.load_checkpoint(folder)
        return str(caught.value)

    content = json.loads((folder / "config.json").read_text())
    wider = content["model"] | {"num_anchors": 30}
    (folder / "config.json").write_text(json.dumps(content | {"model": wider}))
    assert "head.bank.anchor (20, 11) instead of (30, 11)" in problem()
    deeper = content["model"] | {"depth": None}
    (folder / "config.json").write_text(json.dumps(content | {"model": deeper}))
    assert "0 weights missing, 6 unexpected (depth_branch.convs.0.bias" in problem()
    typo = content["model"] | {"num_anchr": 30}
    (folder / "config.json").write_text(json.dumps(content | {"model": typo}))
    assert "did you mean 'num_anchors'" in problem(s4d_core.ConfigError)
    (folder / "config.json").write_text(json.dumps(content | {"format": 7}))
    assert "checkpoint format 7 is not known" in problem()
    (folder / "config.json").write_text("{")
    assert "not readable JSON" in problem()
    (folder / "config.json").write_text("[]")
    assert "expected an object" in problem()
    (folder / "config.json").write_text(json.dumps(content))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "not a readable safetensors file" in problem()
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in problem()
    (folder / "config.json").unlink()
    assert "config.json is missing" in problem()


def test_backbone_weights(tmp_path: Path) -> None:
    model = s4d_core.build_model(small_config())
    source = {
        name: torch.rand_like(value)
        for name, value in model.backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    source["fc.weight"] = torch.zeros(1000, 112)
    torch.save(source, tmp_path / "resnet.pth")
    s4d_core.load_backbone(model, tmp_path / "resnet.pth")
    for name, value in model.backbone.state_dict().items():
        if name in source:
            assert torch.equal(value, source[name])
    del source["layer4.1.bn2.weight"]
    torch.save(source, tmp_path / "resnet.pth")
    with pytest.raises(s4d_core.CheckpointError, match=r"1 weights missing \(layer4"):
        s4d_core.load_backbone(model, tmp_path / "resnet.pth")


def test_r50_backbone_has_torchvision_names() -> None:
    """Name and shape of every weight of torchvision's resnet50, from its published layout."""
    expected = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{name}.{leaf}"] = (channels,)
        expected[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 64)
    channels = 64
    for stage, (count, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for i in range(count):
            block = f"layer{stage}.{i}"
            expected[f"{block}.conv1.weight"] = (width, channels, 1, 1)
            expected[f"{block}.conv2.weight"] = (width, width, 3, 3)
            expected[f"{block}.conv3.weight"] = (4 * width, width, 1, 1)
            for k, size in (("bn1", width), ("bn2", width), ("bn3", 4 * width)):
                norm(f"{block}.{k}", size)
            if i == 0:
                expected[f"{block}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                norm(f"{block}.downsample.1", 4 * width)
            channels = 4 * width
    state = meta_model(s4d_core.get_config("sparse4dv3_r50")).backbone.state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == expected


def test_empty_model_is_ready_for_inference() -> None:
    assert not empty_model(small_config()).training
