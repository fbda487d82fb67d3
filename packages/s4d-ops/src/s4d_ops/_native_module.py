"""Loads the pybind11 module once, with a named error where it is absent."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from .errors import MissingLibraryError

__all__ = ["native"]


@cache
def native() -> Any:
    """The module ``s4d_ops.lib._native``.

    Raises:
        MissingLibraryError: it was not built, or was built for another Python version.
    """
    try:
        return importlib.import_module("s4d_ops.lib._native")
    except ImportError as error:
        raise MissingLibraryError(
            f"the native module of s4d-ops cannot be loaded ({error}); install a wheel made for "
            "this Python version, or build the package with a C++17 compiler"
        ) from error
