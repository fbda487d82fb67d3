"""Device memory of the sparse engine: blocks, staging of host arrays, results that come back."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ..cuda import driver
from ..cuda.driver import Stream
from ..errors import FrameError
from .device_tensor import DeviceTensor, DeviceView, device_view, is_on_device
from .rows import host_array

__all__ = ["DeviceMemory", "Results", "Staging", "download"]


class DeviceMemory:
    """One allocation on the device; ``close`` frees it, and so does its end."""

    def __init__(self, size: int) -> None:
        address = ctypes.c_uint64()
        driver.call("cuMemAlloc_v2", ctypes.byref(address), max(size, 256))
        self.address: int = address.value
        self.size = size
        self._library = driver._library()

    def close(self) -> None:
        """Free the memory. Errors are ignored: a lost device frees all by itself."""
        if self.address:
            self._library.cuMemFree_v2(self.address)
            self.address = 0

    def __del__(self) -> None:
        self.close()


def download(stream: Stream, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """A copy on the host; waits for the stream."""
    array = np.empty(shape, dtype)
    if array.nbytes:
        stream.download(array.ctypes.data, address, array.nbytes)
    stream.synchronize()
    return array


class Staging:
    """Callers' arrays as device arrays: those on the device in place, those on the host copied
    into memory that is kept."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._memory: dict[str, DeviceMemory] = {}

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(memory.size for memory in self._memory.values())

    def view(self, value: Any, what: str, stream: Stream, slot: str = "") -> DeviceView:
        """``value`` on the device. Arrays of different ``slot`` do not share memory.

        Raises:
            FrameError: it cannot be read, or lies on another device.
        """
        if is_on_device(value):
            return device_view(value, what, self._device, stream)
        array = np.ascontiguousarray(host_array(value, what))
        if what == "indices" and array.dtype.kind in "iu":
            array = array.astype(np.int32, copy=False)
        elif array.dtype == np.float64:
            array = array.astype(np.float32)
        name = what + slot
        memory = self._memory.get(name)
        if memory is None or memory.size < array.nbytes:
            stream.synchronize()
            memory = self._memory[name] = DeviceMemory(int(1.25 * array.nbytes))
        if array.nbytes:
            stream.upload(memory.address, array.ctypes.data, array.nbytes)
            stream.synchronize()  # the host array may go
        return DeviceView(memory.address, array.shape, array.dtype.name, memory)

    def clear(self) -> None:
        """Free the memory."""
        self._memory.clear()


class Results:
    """Memory of results: lent to a ``DeviceTensor`` and lent again when that is gone."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._free: list[DeviceMemory] = []

    @property
    def nbytes(self) -> int:
        """Bytes that wait for the next result."""
        return sum(memory.size for memory in self._free)

    def lend(
        self, shape: tuple[int, ...], dtype: str, stream: Stream, out: Any = None
    ) -> DeviceTensor:
        """A tensor to write to: the caller's ``out``, or one of these.

        Raises:
            FrameError: ``out`` has another shape or type.
        """
        if out is not None:
            view = device_view(out, "out", self._device, stream)
            if view.shape != shape or view.dtype != dtype:
                raise FrameError(f"expected out {shape} {dtype}, got {view.shape} {view.dtype}")
            return DeviceTensor(view.address, shape, dtype, self._device, stream, owner=view)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = next((m for m in self._free if m.size == size), None)
        if memory is None:
            memory = DeviceMemory(size)
        else:
            self._free.remove(memory)
        free, lent = self._free, memory
        return DeviceTensor(
            lent.address, shape, dtype, self._device, stream, release=lambda: free.append(lent)
        )

    def clear(self) -> None:
        """Free what is not lent."""
        self._free.clear()
