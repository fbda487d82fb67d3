"""Reading point clouds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from .tensor_file import read_tensor

__all__ = ["find_clouds", "read_cloud"]

SUFFIXES = (".bin", ".npy", ".tensor")


def find_clouds(path: str | os.PathLike[str]) -> list[Path]:
    """The point clouds of a folder by name, or the one file.

    Raises:
        DatasetError: nothing there.
    """
    source = Path(path)
    if source.is_file():
        return [source]
    found = sorted(p for p in source.glob("*") if p.suffix in SUFFIXES) if source.is_dir() else []
    if not found:
        raise DatasetError(f"expected a point cloud or a folder with {', '.join(SUFFIXES)} files, "
                           f"found none at {os.fspath(path)}")  # fmt: skip
    return found


def read_cloud(
    path: Path, columns: int = 5, dtype: str = "float32", channels: int = 3
) -> NDArray[np.float32]:
    """Points as float32, (P, channels).

    Args:
        columns: values of a point in ``.bin``, which is raw numbers of ``dtype``, row by row.
        channels: how many values of a point are wanted, the first ones.

    Raises:
        DatasetError: the size is not a whole number of points, or they have fewer values.
    """
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix == ".tensor":
            array = read_tensor(path)
        else:
            raw = path.read_bytes()
            array = np.frombuffer(raw, dtype).reshape(-1, columns)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"{path.name}: expected points of {columns} {dtype} values each: {error}"
        ) from None
    if array.ndim != 2 or array.shape[1] < channels or array.dtype.kind not in "fiu":
        raise DatasetError(
            f"{path.name}: expected points of at least {channels} values, got {array.dtype} of "
            f"shape {array.shape}"
        )
    return array[:, :channels].astype(np.float32)
