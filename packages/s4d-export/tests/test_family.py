"""v1, v2 and the offline model: exported, and rolled out in ONNX Runtime against torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import seeded_model

from s4d_core import (
    AnchorEncoderConfig,
    QueueConfig,
    ResNetConfig,
    Sparse4DConfig,
    get_config,
    reduced_config,
)
from s4d_export import build_manifest, export_graph, save_artifact
from s4d_export.frames import random_frames
from s4d_export.verification.runs import verify
from s4d_runtime import Camera, Frame, Pipeline

V1, H1 = "sparse4dv1_r101_h4_640x1600", "sparse4dv1_r101_h1_640x1600"
V2, OFFLINE = "sparse4dv2_r50_256x704", "sparse4dv3_eva02l_640x1600_offline"


def tiny(name: str) -> Sparse4DConfig:
    """The model's own parts with a small backbone; v1's with a deformable convolution."""
    config = get_config(name)
    v1 = name.startswith("sparse4dv1")
    backbone = ResNetConfig(
        "bottleneck" if v1 else "basic",
        (1, 1, 1, 1),
        (4, 8, 8, 12) if v1 else (8, 8, 16, 24),
        8,
        style="caffe" if v1 else "pytorch",
        deformable=(False, False, False, name == V1),
    )
    config = reduced_config(replace(config, backbone=backbone), 32, (64, 128), 60, 40, 2, 30)
    config = config.replace(anchor_encoder=replace(config.anchor_encoder, blocks=1))
    if name == H1:
        config = config.replace(camera_names=("left", "right"))
    if name == V1:
        config = config.replace(queue=QueueConfig(2))
    if name == OFFLINE:
        encoder = AnchorEncoderConfig(dims=(16, 4, 4, 8), blocks=1)
        config = config.replace(anchor_encoder=encoder, queue=QueueConfig(2, "future"))
    return config


def write(folder: Path, config: Sparse4DConfig, op: str) -> tuple[Path, object]:
    model = seeded_model(config)
    manifest = build_manifest(config, config.name, op, "fp32")  # type: ignore[arg-type]
    path = save_artifact(folder / f"{op}.s4d", export_graph(model, op), manifest)  # type: ignore[arg-type]
    return path, model


@pytest.mark.parametrize(
    ("name", "op", "state"),
    [
        (V1, "plugin", {"maps", "lidar2img", "from_newest", "age", "filled"}),
        (H1, "standard", set()),
        (V2, "plugin", {"feature", "anchor", "confidence", "track_id", "id_counter"}),
        (
            OFFLINE,
            "plugin",
            {"feature", "anchor", "confidence", "track_id", "id_counter"}
            | {"maps", "lidar2img", "from_newest", "age", "filled"},
        ),
    ],
)
def test_export_and_roll_out(tmp_path: Path, name: str, op: str, state: set[str]) -> None:
    config = tiny(name)
    path, model = write(tmp_path, config, op)
    result = verify(model, path, random_frames(config, 8, seed=1), backend="onnxruntime-cpu")
    assert result["passed"], result["reasons"]
    assert result["step"]["tensors"]["boxes"]["max"] < 1e-3
    if "maps" in state:
        assert result["step"]["tensors"]["next_maps"]["cosine"] > 1 - 1e-9
    with Pipeline.load(path, backend="onnxruntime-cpu") as pipeline:
        assert pipeline.manifest.state == {f"state_{n}": f"next_{n}" for n in state}
        found = [pipeline(frame(config, k)) for k in range(4)]
        pipeline.reset()
        again = pipeline(frame(config, 0))
    assert again is not None and found[0] is not None
    np.testing.assert_array_equal(again.scores, found[0].scores)
    searched = [f is not None and f.scores.max() > 0 for f in found]
    assert searched == ([False, False, True, True] if name == OFFLINE else [True] * 4)
    if config.num_temporal == 0:
        assert all((f.track_ids == -1).all() for f in found if f is not None)


def frame(config: Sparse4DConfig, index: int) -> Frame:
    """A raw frame of a slow drive."""
    random = np.random.default_rng(index)
    height, width = config.image.size
    pose = np.eye(4)
    pose[0, 3] = 2.0 * index
    camera = Camera(
        np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]]),
        np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
    )
    shape = (config.num_cameras, height, width, 3)
    images = list(random.integers(0, 256, shape, dtype=np.uint8))
    return Frame(images, 100.0 + 0.5 * index, pose, [camera] * config.num_cameras)
