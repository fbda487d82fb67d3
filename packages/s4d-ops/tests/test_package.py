"""What the package promises beside its numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import s4d_ops
from s4d_ops import InvalidInputError, MissingLibraryError, S4DError, _libraries, library_path

CSRC = Path(__file__).parents[1] / "csrc"


def test_import_is_light():
    program = (
        "import sys, s4d_ops; heavy = {'torch', 'numpy', 'onnxruntime'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_numpy_doors_do_without_torch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, s4d_ops.numpy, s4d_ops.image as image\n"
        "plan = image.plan_resize_crop((8, 8), (4, 4))\n"
        "image.resize_crop(np.zeros((8, 8, 3), np.uint8), plan)\n"
        "s4d_ops.library_path('onnxruntime')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_public_names():
    assert all(hasattr(s4d_ops, name) for name in s4d_ops.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", s4d_ops.__version__)
    assert issubclass(MissingLibraryError, S4DError) and issubclass(InvalidInputError, S4DError)


def test_unknown_library_is_named():
    with pytest.raises(InvalidInputError, match="tensorrt on cuda"):
        library_path("tensorflow")
    with pytest.raises(InvalidInputError, match="tpu"):
        library_path("onnxruntime", "tpu")


@pytest.mark.parametrize(
    ("kind", "device", "switch"),
    [
        ("onnxruntime", "cpu", "S4D_ORT=ON"),
        ("onnxruntime", "cuda", "S4D_CUDA=ON"),
        ("tensorrt", None, "S4D_TENSORRT=ON"),
        ("torch", "cpu", "S4D_TORCH=ON"),
    ],
)
def test_absent_library_names_its_switch(kind, device, switch, tmp_path, monkeypatch):
    monkeypatch.setattr(_libraries, "LIBRARY_DIR", tmp_path)
    with pytest.raises(MissingLibraryError, match=switch):
        library_path(kind, device)


def test_tensorrt_library_follows_the_installed_version(tmp_path, monkeypatch):
    from importlib import metadata

    for major in (9, 10, 11):
        (tmp_path / f"libs4d_trt{major}.so").touch()
    monkeypatch.setattr(_libraries, "LIBRARY_DIR", tmp_path)

    def version(installed):
        def lookup(name):
            if installed is None:
                raise metadata.PackageNotFoundError(name)
            return installed

        return lookup

    monkeypatch.setattr(metadata, "version", version("10.16.1"))
    assert library_path("tensorrt").endswith("libs4d_trt10.so")
    monkeypatch.setattr(metadata, "version", version(None))
    assert library_path("tensorrt").endswith("libs4d_trt11.so")
    monkeypatch.setattr(metadata, "version", version("12.0"))
    with pytest.raises(MissingLibraryError, match="libs4d_trt"):
        library_path("tensorrt")


@pytest.mark.skipif(not CSRC.is_dir(), reason="the sources are not beside the tests")
def test_the_core_includes_no_framework():
    frameworks = re.compile(
        r"#\s*include\s*[<\"](torch|ATen|c10|NvInfer|onnxruntime|pybind11|Python\.h)"
    )
    files = [p for p in (CSRC / "core").rglob("*") if p.is_file()]
    assert files
    for path in files:
        assert not frameworks.search(path.read_text()), path.name
