"""Shared data, the weight rule of the reference comparisons, and which operator tests use."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import s4d_core
from s4d_ops import MissingLibraryError

SHARED = Path(os.environ.get("S4D_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@cache
def golden(*parts: str) -> Path:
    """A path below the shared golden data; the test is skipped where it is absent."""
    path = SHARED.joinpath("golden", *parts)
    if not path.exists():
        pytest.skip(f"{path.name} is not there: set S4D_SHARED to the shared data")
    return path


@cache
def golden_module(version: str, name: str) -> ModuleType:
    """rules.py or check.py of the golden data."""
    spec = importlib.util.spec_from_file_location(
        f"golden_{version}_{name}", golden(version, f"{name}.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def golden_arrays(version: str, name: str) -> dict[str, np.ndarray]:
    """All arrays of one golden file."""
    with np.load(golden(version, name)) as file:
        return {key: file[key] for key in file.files}


@cache
def native_op_missing() -> str:
    """Why the native operator cannot be used here, or an empty string."""
    try:
        import s4d_ops.torch  # noqa: F401
    except (MissingLibraryError, ModuleNotFoundError) as error:
        return str(error)
    return ""


@pytest.fixture(params=["native", "reference"])
def both_ops(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with either implementation of the aggregation operator."""
    if request.param == "native":
        if native_op_missing():
            pytest.skip(f"the native operator is not built: {native_op_missing()}")
        yield request.param
    else:
        with s4d_core.use_reference_op():
            yield request.param


@pytest.fixture
def any_op() -> Iterator[None]:
    """The native operator where it is built, else the reference: for tests of other things."""
    with s4d_core.use_reference_op() if native_op_missing() else contextlib.nullcontext():
        yield
