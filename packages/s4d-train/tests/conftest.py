"""Shared data of the tests: a small synthetic drive, and real files where they are present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s4d_train.data.conversion import convert
from s4d_train.data.index import DriveIndex
from s4d_train.synth import SynthConfig, generate

SYNTH = SynthConfig(scenes=2, seed=4, image_size=(320, 180), frames=6, sweeps=1)


@pytest.fixture(scope="session")
def synth_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two scenes (mini_train, mini_val) of six key frames."""
    return generate(tmp_path_factory.mktemp("synth") / "drive", SYNTH, workers=1, progress=False)


@pytest.fixture(scope="session")
def synth_index(synth_root: Path, tmp_path_factory: pytest.TempPathFactory) -> DriveIndex:
    out = tmp_path_factory.mktemp("index") / "synth"
    return convert(synth_root, out, "v1.0-mini", workers=1, files=True, progress=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared data; skips where it is absent."""
    default = Path(__file__).resolve().parents[4] / "shared"
    folder = Path(os.environ.get("S4D_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"the shared data is not at {folder}; set S4D_SHARED")
    return folder


@pytest.fixture(scope="session")
def keyframe_root(shared: Path) -> Path:
    """One real nuScenes key frame."""
    return shared / "data" / "nuscenes-keyframe"


@pytest.fixture(scope="session")
def keyframe_index(keyframe_root: Path, tmp_path_factory: pytest.TempPathFactory) -> DriveIndex:
    out = tmp_path_factory.mktemp("index") / "keyframe"
    return convert(keyframe_root, out, "v1.0-mini", workers=1, files=True, progress=False)
