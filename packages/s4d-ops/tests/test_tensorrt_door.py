"""TensorRT door: the plugin test in C++, and registration in TensorRT's own plugin registry."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from s4d_ops._libraries import LIBRARY_DIR

SOURCE = Path(__file__).parent / "cpp" / "test_tensorrt_plugin.cpp"
HEADERS = Path(__file__).parent.parent / "build" / "tensorrt-headers"
NAMES = {
    ("DeformableAggregation", ""),
    ("DeformableAggregation", "s4d"),
    ("DeformableAttentionAggrPlugin", ""),
    ("DeformableAttentionAggrPlugin", "custom"),
}


def library(major: int) -> Path:
    path = LIBRARY_DIR / f"libs4d_trt{major}.so"
    if not path.is_file():
        pytest.skip(f"this build of s4d-ops has no {path.name}")
    return path


def include_folder(major: int) -> Path:
    named = os.environ.get("S4D_TENSORRT_INCLUDE_DIR", "").split(";")
    for folder in [Path(name) for name in named if name] + sorted(HEADERS.glob("*")):
        version = folder / "NvInferVersion.h"
        if version.is_file() and f"TRT_MAJOR_ENTERPRISE {major}\n" in version.read_text():
            return folder
    pytest.skip(f"no headers of TensorRT {major} (tools/fetch_tensorrt_headers.py brings 10)")


@pytest.fixture(scope="session")
def build_test(tmp_path_factory):  # type: ignore[no-untyped-def]
    """Compiles the C++ test against one version's headers."""

    def build(major: int) -> Path:
        headers = include_folder(major)
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            pytest.skip("no nvcc to compile the C++ test with")
        target = tmp_path_factory.mktemp("trt") / f"test{major}"
        isystem = ["-Xcompiler", "-isystem", "-Xcompiler", str(headers)]
        command = [nvcc, "-std=c++17", *isystem, "-o", str(target), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        return target

    return build


@pytest.mark.parametrize("major", (10, 11))
def test_plugin_without_a_gpu(major: int, build_test) -> None:  # type: ignore[no-untyped-def]
    path = library(major)
    done = subprocess.run([build_test(major), path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("major", (10, 11))
def test_plugin_enqueue(major: int, build_test) -> None:  # type: ignore[no-untyped-def]
    path = library(major)
    done = subprocess.run([build_test(major), path, "--gpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("major", (10, 11))
def test_exports_and_needs_nothing_of_tensorrt(major: int) -> None:
    path = library(major)
    loaded = ctypes.CDLL(str(path))
    assert loaded.getCreators and loaded.setLoggerFinder
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    listing = subprocess.run([nm, "-D", path], capture_output=True, text=True, check=True).stdout
    assert not [line for line in listing.splitlines() if " U " in line and "nvinfer" in line]


def test_registers_in_the_lean_runtime() -> None:
    trt = pytest.importorskip("tensorrt_lean")
    path = library(int(trt.__version__.split(".")[0]))
    logger = trt.Logger(trt.Logger.ERROR)
    registry = trt.Runtime(logger).get_plugin_registry()
    assert registry.load_library(str(path)) is not None
    for name, namespace in NAMES:
        assert registry.get_creator(name, "1", namespace) is not None
