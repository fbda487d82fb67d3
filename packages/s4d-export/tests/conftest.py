"""One small model and its artifacts, exported once for all tests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from helpers import seeded_model

from s4d_core import (
    AnchorEncoderConfig,
    DecoderConfig,
    ImageConfig,
    ResNetConfig,
    Sparse4D,
    Sparse4DConfig,
    get_config,
    save_checkpoint,
)
from s4d_export import build_manifest, save_artifact
from s4d_export.cli import source
from s4d_export.graph import tracing
from s4d_export.verification import runs

torch.set_num_threads(1)  # the models are small: more threads only wait for each other


def small_config() -> Sparse4DConfig:
    """The tiny model made smaller still: every part is there, and a frame takes milliseconds."""
    return get_config("sparse4dv3_tiny").replace(
        name="sparse4dv3_test",
        embed_dims=32,
        image=ImageConfig(size=(64, 176)),
        backbone=ResNetConfig(
            block="basic", layers=(1, 1, 1, 1), widths=(8, 16, 24, 32), stem_channels=8
        ),
        anchor_encoder=AnchorEncoderConfig(dims=(16, 4, 4, 8), blocks=1),
        decoder=DecoderConfig(num_layers=3, num_heads=4, ffn_channels=64, dropout=0.0),
        num_anchors=90,
        num_temporal=60,
        num_output=40,
    )


@pytest.fixture(scope="session", autouse=True)
def one_export_per_model() -> Iterator[None]:
    """The commands export the same few models again and again: each is traced once.

    ``test_export_is_reproducible`` traces anew, and shows that nothing is lost by this.
    """
    traced, known = tracing.export_graph, {}

    def remembered(model: Sparse4D, op: str = "plugin") -> onnx.ModelProto:
        digest = hashlib.sha256(f"{op} {model.config.to_dict()}".encode())
        for key, value in model.state_dict().items():
            digest.update(key.encode() + value.contiguous().numpy().tobytes())
        name = digest.hexdigest()
        if name not in known:
            known[name] = traced(model, op).SerializeToString()
        return onnx.load_from_string(known[name])

    with pytest.MonkeyPatch.context() as patch:
        for module in (tracing, source, runs):
            patch.setattr(module, "export_graph", remembered)
        yield


@dataclass(frozen=True)
class Exported:
    """A model, its checkpoint folder, and an artifact per mode."""

    model: Sparse4D
    checkpoint: Path
    artifacts: dict[str, Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    model = seeded_model(small_config())
    save_checkpoint(model, folder / "checkpoint")
    artifacts = {}
    for op in ("plugin", "standard"):
        path = folder / f"{op}.s4d"
        graph = tracing.export_graph(model, op)
        save_artifact(path, graph, build_manifest(model.config, op, op, "fp32"))
        artifacts[op] = path
    return Exported(model, folder / "checkpoint", artifacts)


@pytest.fixture(scope="session")
def keyframe() -> Path:
    """The real nuScenes keyframe, where this machine has it."""
    shared = Path(os.environ.get("S4D_SHARED", Path(__file__).parents[3].parent / "shared"))
    folder = shared / "data" / "nuscenes-keyframe"
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not on this machine (S4D_SHARED)")
    return folder
