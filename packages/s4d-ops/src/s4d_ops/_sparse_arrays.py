"""Arguments and calls of the sparse numpy functions, with named errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._native_module import native
from .errors import InvalidInputError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["Triple", "call", "index_rows", "triple"]

Triple = Sequence[int]


def call(function: str, *arguments: Any) -> Any:
    """A function of the native module; its ValueError and TypeError become InvalidInputError."""
    try:
        return getattr(native(), function)(*arguments)
    except (ValueError, TypeError) as error:
        # pybind's own TypeError lists C++ signatures after the first line.
        raise InvalidInputError(str(error).split("\n")[0]) from None


def triple(values: int | Triple, what: str) -> tuple[int, int, int]:
    numbers = (values,) * 3 if isinstance(values, int) else tuple(int(v) for v in values)
    if len(numbers) != 3:
        raise InvalidInputError(f"expected one or three numbers for {what}, got {values}")
    return numbers[0], numbers[1], numbers[2]


def index_rows(indices: NDArray[Any]) -> NDArray[np.int32]:
    rows = np.asarray(indices)
    if rows.dtype.kind not in "iu":
        raise InvalidInputError(f"expected integer indices, got {rows.dtype}")
    if rows.size and (rows.max() > 2**31 - 1 or rows.min() < -(2**31)):
        raise InvalidInputError("expected indices that fit in int32")
    return np.ascontiguousarray(rows, np.int32)
