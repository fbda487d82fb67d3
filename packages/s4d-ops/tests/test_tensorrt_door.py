"""TensorRT door: the plugin test in C++, and registration in TensorRT's own plugin registry."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from s4d_ops._libraries import LIBRARY_DIR

SOURCES = Path(__file__).parent / "cpp"
HEADERS = Path(__file__).parent.parent / "build" / "tensorrt-headers"


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
    """Compiles a C++ test against one version's headers."""

    def build(major: int, name: str = "test_tensorrt_plugin") -> Path:
        headers = include_folder(major)
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            pytest.skip("no nvcc to compile the C++ test with")
        target = tmp_path_factory.mktemp("trt") / name
        isystem = ["-Xcompiler", "-isystem", "-Xcompiler", str(headers)]
        command = [nvcc, "-std=c++17", *isystem, "-o", str(target)]
        subprocess.run([*command, str(SOURCES / f"{name}.cpp"), "-ldl"], check=True)
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


def test_registers_in_a_real_plugin_registry(build_test) -> None:  # type: ignore[no-untyped-def]
    """Needs `tensorrt-lean-cu13` (any runtime would do). Its Python class Runtime wants a CUDA
    driver; the registry of its library does not."""
    package = importlib.util.find_spec("tensorrt_lean_libs")
    if package is None or not package.submodule_search_locations:
        pytest.skip("tensorrt-lean-cu13 is not installed")
    (runtime,) = Path(package.submodule_search_locations[0]).glob("libnvinfer_lean.so.*")
    major = int(runtime.suffix[1:])
    program = build_test(major, "test_tensorrt_registry")
    done = subprocess.run([program, runtime, library(major)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("made") == 4
