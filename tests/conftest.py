"""One small synthetic drive and one exported artifact for all tests across packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from s4d_export.cli import main as s4d_export
from s4d_train.cli import main as s4d_train

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The trained tiny model of the demo."""
    return ROOT / "demo" / "sparse4dv3_tiny"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scene of four key frames in nuScenes layout."""
    folder = tmp_path_factory.mktemp("drive") / "world"
    arguments = ["--scenes", "1", "--val-scenes", "0", "--frames", "4", "--seed", "5"]
    size = ["--image-size", "400x225", "--quiet"]
    assert s4d_train(["synth", "--out", str(folder), *arguments, *size]) == 0
    return folder


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """The checkpoint as an artifact, with the custom op."""
    path = tmp_path_factory.mktemp("artifact") / "tiny.s4d"
    assert s4d_export(["onnx", str(checkpoint), "-o", str(path)]) == 0
    return path
