"""Blocks of device and pinned memory that hold several named tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import TensorSpec
from .driver import _library, call

__all__ = ["DeviceArray", "DeviceBlock", "PinnedBlock"]

ALIGNMENT = 256  # what cudaMalloc gives; kernels may count on it


class DeviceArray:
    """A typed view of device memory, for whoever reads ``__cuda_array_interface__``."""

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: str, strides: tuple[int, ...] | None
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.strides = strides
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": shape,
            "typestr": self.dtype.str,
            "data": (address, False),
            "strides": strides,
            "version": 3,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of a contiguous array of this shape and type."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


def _layout(specs: Sequence[TensorSpec]) -> tuple[dict[str, int], int]:
    """Byte offset of each tensor, and the size of all."""
    offsets, size = {}, 0
    for spec in specs:
        offsets[spec.name] = size
        size += -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, max(size, ALIGNMENT)


class DeviceBlock:
    """One allocation on the device, cut into tensors."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        offsets, self.size = _layout(specs)
        address = ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(address), self.size)
        self.address: int = address.value
        self.arrays = {
            s.name: DeviceArray(self.address + offsets[s.name], s.shape, s.dtype, None)
            for s in specs
        }

    def close(self) -> None:
        """Free the memory. Errors are ignored: a lost device frees all by itself."""
        if self.address:
            _library().cuMemFree_v2(self.address)
            self.address = 0
            self.arrays = {}


class PinnedBlock:
    """One page-locked allocation on the host, cut into tensors like a ``DeviceBlock``.

    The numpy arrays must not be used after ``close``.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        offsets, self.size = _layout(specs)
        address = ctypes.c_void_p()
        call("cuMemHostAlloc", ctypes.byref(address), self.size, 0)
        self.address: int = address.value or 0
        memory = (ctypes.c_ubyte * self.size).from_address(self.address)
        whole = np.ctypeslib.as_array(memory)
        whole.fill(0)
        self.arrays: dict[str, NDArray[Any]] = {
            s.name: whole[offsets[s.name] : offsets[s.name] + s.nbytes]
            .view(s.dtype)
            .reshape(s.shape)
            for s in specs
        }

    def close(self) -> None:
        """Free the memory."""
        if self.address:
            self.arrays = {}
            _library().cuMemFreeHost(self.address)
            self.address = 0
