"""Tensor files of libspconv: int32 magic, rank and type code, int32 dimensions, raw data."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_bytes
from .errors import TensorFileError

__all__ = ["MAGIC", "read_tensor", "write_tensor"]

MAGIC = 0x33FF1101
# CUDA-CenterPoint's tools write the same magic with another table (0 fp32, 1 fp16, 2 int32,
# 3 int64). Code 0 shows such a file; its codes 1 to 3 cannot be told apart but by the size.
_DTYPES = {1: "<i4", 2: "<f2", 3: "<f4", 4: "<i8", 5: "<u8", 6: "<u4", 7: "|i1", 8: "|u1"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}


def read_tensor(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read one tensor file.

    Raises:
        TensorFileError: not such a file, truncated, or with bytes left over.
    """
    name = Path(path).name
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TensorFileError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from None
    if len(data) < 12 or int.from_bytes(data[:4], "little") != MAGIC:
        raise TensorFileError(f"{name}: expected a tensor file with magic {MAGIC:#x}")
    rank, code = (int(n) for n in np.frombuffer(data, "<i4", 2, 4))
    if code not in _DTYPES:
        hint = "; CUDA-CenterPoint's tools write another code table" if code == 0 else ""
        raise TensorFileError(f"{name}: unknown element type code {code}{hint}")
    if not 0 <= rank <= 8 or len(data) < 12 + 4 * rank:
        raise TensorFileError(f"{name}: expected 0 to 8 dimensions, got {rank}")
    shape = [int(n) for n in np.frombuffer(data, "<i4", rank, 12)]
    dtype = np.dtype(_DTYPES[code])
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(data) - 12 - 4 * rank != expected:
        raise TensorFileError(
            f"{name}: shape {shape} of {dtype} needs {expected} bytes, got "
            f"{len(data) - 12 - 4 * rank}"
        )
    return np.frombuffer(data, dtype, offset=12 + 4 * rank).reshape(shape)


def write_tensor(path: str | os.PathLike[str], array: NDArray[Any]) -> Path:
    """Write one tensor file, beside and renamed.

    Raises:
        TensorFileError: an element type that the format does not have.
    """
    little = np.asarray(array)
    dtype = little.dtype.newbyteorder("<")
    if dtype not in _CODES or little.ndim > 8 or max(little.shape, default=0) >= 1 << 31:
        raise TensorFileError(f"cannot write {little.dtype} {little.shape} as a tensor file")
    head = np.array([MAGIC, little.ndim, _CODES[dtype], *little.shape], "<i4")
    return write_bytes(path, head.tobytes() + little.astype(dtype).tobytes())
