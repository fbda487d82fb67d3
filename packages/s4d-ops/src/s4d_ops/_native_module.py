"""Loads the pybind11 modules once, with a named error where one is absent."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from .errors import MissingLibraryError

__all__ = ["cuda_native", "native"]


def _load(name: str, what: str, remedy: str) -> Any:
    try:
        return importlib.import_module(f"s4d_ops.lib.{name}")
    except ImportError as error:
        raise MissingLibraryError(f"{what} cannot be loaded ({error}); {remedy}") from error


@cache
def native() -> Any:
    """The module ``s4d_ops.lib._native``: what runs on the CPU.

    Raises:
        MissingLibraryError: it was not built, or was built for another Python version.
    """
    return _load(
        "_native",
        "the native module of s4d-ops",
        "install a wheel made for this Python version, or build the package with a C++17 compiler",
    )


@cache
def cuda_native() -> Any:
    """The module ``s4d_ops.lib._sparse_cuda``: CUDA without a framework.

    Raises:
        MissingLibraryError: it was not built, or was built for another Python version.
    """
    return _load(
        "_sparse_cuda",
        "the CUDA module of sparse convolution",
        "build s4d-ops with S4D_CUDA=ON where nvcc is",
    )
