"""Fixtures: the tiny artifact, a made data set, the shared keyframe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_dataset import write_dataset
from runtime_tiny import tiny_artifact

from s4d_runtime import Pipeline
from s4d_runtime.rig import rig_frames

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny.s4d")


@pytest.fixture
def pipeline(artifact: Path) -> Iterator[Pipeline]:
    with Pipeline.load(artifact, threads=1) as loaded:
        yield loaded


@pytest.fixture
def frames(pipeline: Pipeline):
    """Sound frames of raw size 90 x 160, half a second apart."""
    return rig_frames(pipeline.manifest, (90, 160), interval=0.5)


@pytest.fixture(scope="session")
def made_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "drives")


@pytest.fixture(scope="session")
def keyframe() -> Path:
    """The real nuScenes keyframe among the shared data."""
    shared = Path(os.environ.get("S4D_SHARED", REPOSITORY.parent / "shared"))
    folder = shared / "data" / "nuscenes-keyframe"
    if not folder.is_dir():
        pytest.skip(f"the shared keyframe is not at {folder}; set S4D_SHARED")
    return folder
