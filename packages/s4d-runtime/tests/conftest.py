"""Fixtures: the tiny artifact, stand-ins of a device, a made data set, the shared keyframe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import FakeDriver, fake_tensorrt
from fake_sparse import FakeSparse
from runtime_dataset import write_dataset
from runtime_tiny import stream_of, tiny_artifact, tiny_manifest, tiny_onnx

from s4d_ops import sparse_cuda
from s4d_runtime import Pipeline
from s4d_runtime.artifact import write_artifact
from s4d_runtime.cuda import driver as driver_module
from s4d_runtime.cuda import images as images_module

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
    return stream_of(pipeline)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A stand-in of the CUDA driver, which the package calls from now on."""
    fake = FakeDriver()
    for module in (driver_module, sys.modules["s4d_runtime.cuda.memory"]):
        monkeypatch.setattr(module, "_library", lambda: fake)
    monkeypatch.setattr(images_module, "resize_crop", fake.resize_crop)
    return fake


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeSparse:
    """A stand-in of a device for the LiDAR engine: driver and kernels."""
    driver = FakeDriver()
    monkeypatch.setattr(driver_module, "_library", lambda: driver)
    sparse = FakeSparse(driver)
    monkeypatch.setattr(sparse_cuda, "native", lambda: sparse)
    return sparse


@pytest.fixture
def trt(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in of the package tensorrt, over that driver."""
    from s4d_runtime.backends import tensorrt as backend

    module = fake_tensorrt(driver, tiny_onnx())
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(backend, "find_spec", lambda name: name == "tensorrt" or None)
    return module


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine artifact for it."""
    return write_artifact(
        tmp_path / "e.s4d", tiny_manifest(kind="engine"), {"model.engine": b"engine"}
    )


@pytest.fixture
def device_pipeline(trt: Any, engine: Path) -> Iterator[Pipeline]:
    with Pipeline.load(engine, policy="tolerant") as loaded:
        yield loaded


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
