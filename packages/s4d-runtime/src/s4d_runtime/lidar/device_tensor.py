"""Tensors on a CUDA device: out by DLPack without copies, in from anything that speaks it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s4d_ops import sparse_cuda

from ..cuda.driver import Event, Stream
from ..errors import FrameError

__all__ = ["BorrowedStream", "DeviceTensor", "DeviceView", "device_view", "is_on_device"]

CUDA = 2  # DLPack's number for device memory
_LEGACY_STREAM = 1  # DLPack's and the driver's number for the default stream


class BorrowedStream(Stream):
    """A caller's stream, by its address; 0 is the default stream. It is not closed here."""

    def __init__(self, handle: int) -> None:
        self.handle = handle or _LEGACY_STREAM

    def close(self) -> None:
        """Nothing: the stream is the caller's."""


class DeviceTensor:
    """A contiguous array in device memory.

    ``torch.from_dlpack(tensor)`` and the like read it in place; so does whoever reads
    ``__cuda_array_interface__``. ``numpy()`` copies it to the host. The memory goes back to the
    engine when the last reference, DLPack consumers included, is gone.

    Attributes:
        address: of the first element.
        shape, dtype: as in numpy.
        device: index of the device.
    """

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: Any,
        device: int,
        stream: Stream,
        release: Callable[[], None] | None = None,
        owner: Any = None,
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.device = device
        self._stream = stream
        self._owner = owner
        self._ready: Event | None = None
        if release is not None:
            weakref.finalize(self, release)

    def written(self, stream: Stream) -> None:
        """The work on ``stream`` so far makes the values: consumers wait for it."""
        if self._ready is None:
            self._ready = Event(timing=False)
            weakref.finalize(self, self._ready.close)
        self._ready.record(stream)

    def ready_for(self, stream: Stream) -> None:
        """Let ``stream`` wait until the values are there."""
        if self._ready is not None and stream.handle != self._stream.handle:
            stream.wait(self._ready)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": self._stream.handle,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(self, *, stream: int | None = None, copy: bool | None = None, **_: Any) -> Any:
        """A capsule for a consumer that works on ``stream`` (None: the default stream).

        Raises:
            BufferError: a copy was asked for.
        """
        if copy:
            raise BufferError("the tensor is exported in place; copy it on the other side")
        if stream != -1:
            self.ready_for(BorrowedStream(stream or _LEGACY_STREAM))
        return sparse_cuda.native().export_tensor(
            self.address, list(self.shape), self.dtype.name, self.device, self
        )

    def numpy(self) -> NDArray[Any]:
        """A copy on the host; waits for the tensor."""
        array = np.empty(self.shape, self.dtype)
        if array.nbytes:
            self._stream.download(array.ctypes.data, self.address, array.nbytes)
            self._stream.synchronize()
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __repr__(self) -> str:
        return f"DeviceTensor({self.shape}, {self.dtype}, cuda:{self.device})"


class DeviceView:
    """What a caller's device array is: address, shape, type. Keeps it alive."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str, owner: Any) -> None:
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self.owner = owner


def is_on_device(value: Any) -> bool:
    """Whether ``value`` says that it lies in CUDA memory."""
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) == CUDA
    return hasattr(value, "__cuda_array_interface__")


def device_view(value: Any, what: str, device: int, stream: Stream) -> DeviceView:
    """Read a device array in place, ordered after its producer's work so far.

    Raises:
        FrameError: another device, or rows that are not contiguous.
    """
    if isinstance(value, DeviceTensor) and value.device == device:
        value.ready_for(stream)
        return DeviceView(value.address, value.shape, value.dtype.name, value)
    if not hasattr(value, "__dlpack__"):
        interface = value.__cuda_array_interface__
        if interface.get("strides") is not None:
            raise FrameError(f"expected contiguous {what}")
        dtype = np.dtype(interface["typestr"]).name
        return DeviceView(interface["data"][0], tuple(interface["shape"]), dtype, value)
    try:
        tensor = sparse_cuda.native().ImportedTensor(value.__dlpack__(stream=stream.handle))
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise FrameError(f"{what} cannot be read through DLPack: {error}") from None
    shape = tuple(tensor.shape)
    if tensor.device != (CUDA, device):
        raise FrameError(
            f"expected {what} on CUDA device {device}, got DLPack device {tensor.device}"
        )
    if not tensor.contiguous and np.prod(shape):
        raise FrameError(f"expected contiguous {what}, rows side by side")
    return DeviceView(tensor.address, shape, tensor.dtype, tensor)
