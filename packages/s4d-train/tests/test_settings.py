"""Settings: overrides, round trips, and errors that name the nearest thing."""

from __future__ import annotations

import json

import pytest

import s4d_core.config
from s4d_train.configs.config import FitConfig
from s4d_train.configs.recipes import RECIPES, get_recipe
from s4d_train.configs.settings import from_dict, override, to_dict
from s4d_train.data import config as data_config
from s4d_train.errors import ConfigError
from s4d_train.trainer.ranks import pick_device

BASE = get_recipe("sparse4dv3_r50_256x704")


def test_recipes_are_the_published_ones() -> None:
    assert BASE.run.batch * 8 == BASE.optimiser.reference_batch == 48 and BASE.run.epochs == 100
    other = get_recipe("sparse4dv3_r50_256x704_bs88")
    assert other.run.batch * 4 == other.optimiser.reference_batch == 88 and other.run.epochs == 150
    for config in (BASE, other):
        assert config.optimiser.lr == 6e-4 and config.optimiser.backbone_multiplier == 0.5
        assert config.optimiser.weight_decay == 1e-3 and config.optimiser.clip == 25.0


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_settings_survive_json(name: str) -> None:
    config = get_recipe(name)
    assert config.name == name
    assert from_dict(FitConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_overrides() -> None:
    config = override(
        BASE,
        [
            "run.batch=4",
            "optimiser.lr=1",
            "data.image_size=(128, 352)",
            "data.augment.flip=false",
            "model.dropout=0.2",
            "out=runs/1=2",
            "loss.class_columns={9: (1.0,) * 10}",
        ][:-1],
    )
    assert config.run.batch == 4 and config.optimiser.lr == 1.0
    assert config.data.image_size == (128, 352) and config.data.augment.flip is False
    assert config.model.dropout == 0.2 and config.out == "runs/1=2"
    assert override(config, ["model.dropout=none"]).model.dropout is None
    assert override(config, ["loss.class_columns={}"]).loss.class_columns == {}
    assert override(config, ["data.index='a b'"]).data.index == "a b"
    assert override(config, ["data.index=7"]).data.index == "7"
    assert BASE.run.batch == 6


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("run.bacth=4", "no setting 'run.bacth'; did you mean 'run.batch'"),
        ("rum.batch=4", "no setting 'rum.batch'; did you mean 'run.batch'"),
        ("data.idx=x", "no setting 'data.idx'; did you mean 'data.index'"),
        ("idx=x", "did you mean 'data.index'"),
        ("batch=4", "did you mean 'run.batch'"),
        ("xyzzy=4", "--show lists all settings"),
        ("run.batch=four", "'run.batch' needs int; got 'four'"),
        ("run.batch=4.5", "needs int"),
        ("run.batch.size=4", "'run.batch' is a value and has no part 'size'"),
        ("run=4", "'run' is a group"),
        ("run.precision=bf61", "does not know 'bf61'; did you mean 'bf16'"),
        ("data.image_size=(1, 2, 3)", "data.image_size' needs tuple"),
        ("run.deterministic=1", "needs bool"),
        ("run.batch", "written key=value"),
        ("=4", "written key=value"),
    ],
)
def test_bad_overrides(pair: str, message: str) -> None:
    with pytest.raises(ConfigError) as found:
        override(BASE, [pair])
    assert message in str(found.value)


def test_bad_files_and_names() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sparse4dv3_tiny'"):
        get_recipe("sparse4dv3_tinny")
    with pytest.raises(ConfigError, match=r"no setting 'run\.stpes'; did you mean 'run\.steps'"):
        from_dict(FitConfig, {"name": "x", "run": {"stpes": 3}})
    with pytest.raises(ConfigError, match="incomplete: 'name' must be given"):
        from_dict(FitConfig, {})
    with pytest.raises(ConfigError, match="'name' needs str; got 3"):
        from_dict(FitConfig, {"name": 3})


def test_names_are_those_of_the_models() -> None:
    """The data half repeats them, so that it needs no torch."""
    assert data_config.CLASS_NAMES == s4d_core.config.CLASS_NAMES
    assert data_config.CAMERA_NAMES == s4d_core.config.CAMERA_NAMES


@pytest.mark.parametrize("name", ["kuda", "cuda:99", "meta"])
def test_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        pick_device(name)
    assert pick_device("cpu").type == "cpu"
