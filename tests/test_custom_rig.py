"""Rigs of three and of eleven cameras, with other sizes, classes and ranges, through everything.

From a data set over training, export and verification to the runtime. The three-camera model is
a small v3, the eleven-camera one a small v1, which has weights for every camera by its place.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from s4d_core import (
    ImageConfig,
    ResNetConfig,
    Sparse4DConfig,
    get_config,
    load_checkpoint,
)
from s4d_export.cli import main as s4d_export
from s4d_runtime import Pipeline
from s4d_runtime.drive import frames_of
from s4d_runtime.nuscenes import NuScenes
from s4d_train.cli import main as s4d_train

FRONT = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT")  # an order of its own
EXTRA = tuple(f"CAM_EXTRA_{i}" for i in range(5))
ALL = (*FRONT, "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT", *EXTRA)


@dataclass(frozen=True)
class Rig:
    """A model for a rig, and the settings that go with it."""

    config: Sparse4DConfig
    recipe: str
    max_distance: float


def small(name: str, base: str, **changes: object) -> Sparse4DConfig:
    """A few thousand weights with the parts of a published model."""
    config = get_config(base)
    summed = config.anchor_encoder.mode == "add"
    return replace(
        config,
        name=name,
        embed_dims=16,
        backbone=ResNetConfig("basic", (1, 1, 1, 1), (8, 8, 16, 16), 8),
        anchor_encoder=replace(
            config.anchor_encoder, dims=(16,) * 4 if summed else (4,) * 4, blocks=1
        ),
        decoder=replace(
            config.decoder,
            num_layers=2,
            num_single_frame=2 if config.num_temporal == 0 else 1,
            num_heads=2,
            ffn_channels=32,
            dropout=0.0,
        ),
        aggregation=replace(config.aggregation, num_groups=2, num_learned_points=1),
        num_anchors=24,
        num_temporal=0 if config.num_temporal == 0 else 12,
        num_output=12,
        **changes,
    )


RIGS = {
    "three": Rig(
        small(
            "three",
            "sparse4dv3_tiny",
            image=ImageConfig(size=(48, 96), resize_filter="cv2_linear"),
            camera_names=FRONT,
            class_names=("pedestrian", "car"),
        ),
        "sparse4dv3_tiny_smoke",
        30.0,
    ),
    "eleven": Rig(
        small(
            "eleven",
            "sparse4dv1_r101_h1_640x1600",
            image=ImageConfig(size=(32, 64), std=(1.0, 1.0, 1.0)),
            camera_names=ALL,
            class_names=("car", "truck", "bus"),
        ),
        "sparse4dv1_r101_h1_640x1600",
        40.0,
    ),
}


@pytest.fixture(scope="module")
def wide_world(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic drive with five more cameras, which see what other cameras see."""
    folder = tmp_path_factory.mktemp("wide") / "world"
    shutil.copytree(world, folder)
    tables = folder / "v1.0-mini"

    def read(name: str) -> list[dict]:
        return json.loads((tables / f"{name}.json").read_text())

    sensors, calibrated, data = (read(n) for n in ("sensor", "calibrated_sensor", "sample_data"))
    cameras = [s for s in sensors if s["modality"] == "camera"][: len(EXTRA)]
    for name, sensor in zip(EXTRA, cameras, strict=True):
        token = f"{name}-{sensor['token']}"
        sensors.append({**sensor, "token": token, "channel": name})
        twins = {
            c["token"]: {**c, "token": f"{name}-{c['token']}", "sensor_token": token}
            for c in calibrated
            if c["sensor_token"] == sensor["token"]
        }
        calibrated.extend(twins.values())
        for row in [r for r in data if r["calibrated_sensor_token"] in twins]:
            links = {k: row[k] and f"{name}-{row[k]}" for k in ("token", "prev", "next")}
            twin = twins[row["calibrated_sensor_token"]]["token"]
            data.append({**row, **links, "calibrated_sensor_token": twin})
    for name, rows in (
        ("sensor", sensors),
        ("calibrated_sensor", calibrated),
        ("sample_data", data),
    ):
        (tables / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("name", sorted(RIGS))
def test_a_rig_from_training_to_the_runtime(name: str, wide_world: Path, tmp_path: Path) -> None:
    rig = RIGS[name]
    config = rig.config
    index, run, artifact = tmp_path / "index", tmp_path / "run", tmp_path / f"{name}.s4d"
    assert s4d_train(["convert", str(wide_world), "--out", str(index), "--quiet"]) == 0
    (tmp_path / "model.json").write_text(json.dumps({"model": config.to_dict()}))
    settings = {
        "model.name": tmp_path / "model.json",
        "model.checkpointing": False,
        "data.index": index,
        "data.image_size": config.image.size,
        "data.resize_filter": config.image.resize_filter,
        "data.camera_names": config.camera_names,
        "data.class_names": config.class_names,
        "data.max_distance": rig.max_distance,
        "split": "mini_train",
        "run.batch": 1,
        "run.steps": 3,
        "run.workers": 0,
        "run.precision": "fp32",
        "run.log_every": 1,
        "optimiser.warmup_steps": 1,
    }
    pairs = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    command = ["fit", rig.recipe, "--out", str(run), "--device", "cpu", "--no-progress"]
    assert s4d_train([*command, *pairs]) == 0
    checkpoint = max(run.rglob("config.json"), key=lambda p: len(p.parts)).parent
    assert load_checkpoint(checkpoint).config.camera_names == config.camera_names

    assert s4d_export(["onnx", str(checkpoint), "-o", str(artifact)]) == 0
    assert s4d_export(["verify", str(checkpoint), str(artifact), "--frames", "4"]) == 0
    dataset = NuScenes(wide_world)
    with Pipeline.load(artifact) as pipeline:
        assert pipeline.manifest.preprocessing.camera_names == config.camera_names
        assert pipeline.manifest.class_names == config.class_names
        for _, frame in frames_of(dataset, dataset.scenes[0], config.camera_names):
            found = pipeline(frame)
            assert found is not None and len(found) == config.num_output
            assert np.isfinite(found.boxes).all()
            assert set(found.labels) <= set(range(len(config.class_names)))
