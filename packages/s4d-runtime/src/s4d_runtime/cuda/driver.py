"""The CUDA driver's C interface through ctypes.

``libcuda.so.1`` comes with the NVIDIA driver, so nothing has to be installed for it, and it serves
CUDA 12 and 13 alike. The device's primary context is used: the one that ONNX Runtime, TensorRT and
the kernels of s4d-ops use, so that pointers and streams are common to all.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

from ..errors import BackendUnavailableError, DeviceError, DeviceLostError, DeviceMemoryError

__all__ = [
    "Device",
    "Event",
    "Graph",
    "Stream",
    "call",
    "cuda_device_problem",
    "device_error",
    "forget_runtime_error",
    "out_of_memory",
]

LIBRARY = "libcuda.so.1"
_OUT_OF_MEMORY = 2
# After these the context is lost for good: every later call of the process gives them again.
_STICKY = {
    *(214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721),  # faults on the device
    *(4, 999),  # driver gone, unknown
}
_EVENT_DISABLE_TIMING = 2
_STREAM_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1

_p, _pp = c_void_p, ctypes.POINTER(c_void_p)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (ctypes.POINTER(c_int),),
    "cuDeviceGet": (ctypes.POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_pp, c_int),
    "cuCtxSetCurrent": (_p,),
    "cuMemGetInfo_v2": (ctypes.POINTER(c_size_t), ctypes.POINTER(c_size_t)),
    "cuMemAlloc_v2": (ctypes.POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (_pp, c_size_t, c_uint),
    "cuMemFreeHost": (_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, _p, c_size_t, _p),
    "cuMemcpyDtoHAsync_v2": (_p, c_uint64, c_size_t, _p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, _p),
    "cuMemsetD8Async": (c_uint64, ctypes.c_ubyte, c_size_t, _p),
    "cuStreamCreate": (_pp, c_uint),
    "cuStreamDestroy_v2": (_p,),
    "cuStreamSynchronize": (_p,),
    "cuStreamWaitEvent": (_p, _p, c_uint),
    "cuStreamBeginCapture_v2": (_p, c_int),
    "cuStreamEndCapture": (_p, _pp),
    "cuGraphInstantiateWithFlags": (_pp, _p, ctypes.c_ulonglong),
    "cuGraphLaunch": (_p, _p),
    "cuGraphDestroy": (_p,),
    "cuGraphExecDestroy": (_p,),
    "cuEventCreate": (_pp, c_uint),
    "cuEventDestroy_v2": (_p,),
    "cuEventRecord": (_p, _p),
    "cuEventElapsedTime": (ctypes.POINTER(c_float), _p, _p),
    "cuGetErrorName": (c_int, ctypes.POINTER(c_char_p)),
    "cuGetErrorString": (c_int, ctypes.POINTER(c_char_p)),
}


@cache
def _library() -> Any:
    library = ctypes.CDLL(LIBRARY)
    for name, types in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, c_int
    return library


def call(name: str, *arguments: Any) -> None:
    """Call a driver function; its error becomes an exception.

    Raises:
        DeviceMemoryError: no memory left on the device or for pinned memory.
        DeviceLostError: the context is broken; only a new process can go on.
        DeviceError: any other failure.
    """
    code = getattr(_library(), name)(*arguments)
    if code:
        raise device_error(code, name)


def device_error(code: int, where: str) -> DeviceError:
    """The exception for a driver's (or the runtime library's) error number."""
    text = c_char_p()
    _library().cuGetErrorString(code, byref(text))
    label = c_char_p()
    _library().cuGetErrorName(code, byref(label))
    what = f"{(label.value or b'unknown error').decode()} ({code})"
    reason = (text.value or b"no description").decode()
    if code == _OUT_OF_MEMORY:
        return out_of_memory(where)
    if code in _STICKY:
        return DeviceLostError(
            f"{where}: the device stopped with {what}, {reason}; CUDA does not recover inside "
            "a process, so start it anew"
        )
    return DeviceError(f"{where}: {what}, {reason}")


def out_of_memory(where: str) -> DeviceMemoryError:
    """The exception for a failed allocation."""
    return DeviceMemoryError(
        f"{where}: no memory left on the device; close other users of the device, or use a "
        "smaller model or precision"
    )


def cuda_device_problem() -> str | None:
    """None if there is a CUDA device, else why not, in a few words."""
    try:
        library = _library()
    except OSError:
        return f"there is no CUDA driver ({LIBRARY})"
    except AttributeError as error:
        return f"the CUDA driver is too old ({error})"
    count = c_int()
    if library.cuInit(0) or library.cuDeviceGetCount(byref(count)) or count.value < 1:
        return "there is no CUDA device"
    return None


class Device:
    """One CUDA device and its primary context.

    The context must be current in each thread that uses the device: ``make_current``.
    """

    def __init__(self, index: int = 0) -> None:
        problem = cuda_device_problem()
        if problem is not None:
            raise BackendUnavailableError(problem)
        count, number, context = c_int(), c_int(), c_void_p()
        call("cuDeviceGetCount", byref(count))
        if not 0 <= index < count.value:
            raise BackendUnavailableError(
                f"expected a CUDA device of 0 to {count.value - 1}, got {index}"
            )
        call("cuDeviceGet", byref(number), index)
        call("cuDevicePrimaryCtxRetain", byref(context), number)
        self.index = index
        self._number = number.value
        self._context = context
        self.make_current()

    def make_current(self) -> None:
        """Make the primary context this thread's context."""
        call("cuCtxSetCurrent", self._context)

    @property
    def name(self) -> str:
        """The device's name, e.g. ``NVIDIA H200``."""
        text = ctypes.create_string_buffer(128)
        call("cuDeviceGetName", text, len(text), self._number)
        return text.value.decode()

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device, all processes counted."""
        free, total = c_size_t(), c_size_t()
        call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value


class Stream:
    """A CUDA stream that does not wait for the default stream."""

    def __init__(self) -> None:
        handle = c_void_p()
        call("cuStreamCreate", byref(handle), _STREAM_NON_BLOCKING)
        self.handle: int = handle.value or 0

    def synchronize(self) -> None:
        """Wait until all work of the stream is done."""
        call("cuStreamSynchronize", self.handle)

    def upload(self, target: int, source: int, size: int) -> None:
        """Copy from host memory to the device; the host memory must stay until it is done."""
        call("cuMemcpyHtoDAsync_v2", target, source, size, self.handle)

    def download(self, target: int, source: int, size: int) -> None:
        """Copy from the device to host memory."""
        call("cuMemcpyDtoHAsync_v2", target, source, size, self.handle)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy on the device."""
        call("cuMemcpyDtoDAsync_v2", target, source, size, self.handle)

    def clear(self, target: int, size: int) -> None:
        """Fill device memory with zero bytes."""
        call("cuMemsetD8Async", target, 0, size, self.handle)

    def wait(self, event: Event) -> None:
        """Let later work of the stream wait for an event."""
        call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def begin_capture(self) -> None:
        """Record what follows instead of running it; other threads are not disturbed."""
        call("cuStreamBeginCapture_v2", self.handle, _CAPTURE_THREAD_LOCAL)

    def end_capture(self) -> Graph:
        """The recorded work as a graph."""
        graph = c_void_p()
        call("cuStreamEndCapture", self.handle, byref(graph))
        try:
            return Graph(graph)
        finally:
            _library().cuGraphDestroy(graph)

    def abort_capture(self) -> None:
        """Leave a capture whose work failed; the error is already known."""
        graph = c_void_p()
        _library().cuStreamEndCapture(self.handle, byref(graph))
        if graph.value:
            _library().cuGraphDestroy(graph)

    def close(self) -> None:
        """Destroy the stream. Errors are ignored: a lost device has none."""
        if self.handle:
            _library().cuStreamDestroy_v2(self.handle)
            self.handle = 0


class Graph:
    """An instantiated CUDA graph."""

    def __init__(self, definition: c_void_p) -> None:
        handle = c_void_p()
        call("cuGraphInstantiateWithFlags", byref(handle), definition, 0)
        self._handle: int = handle.value or 0

    def launch(self, stream: Stream) -> None:
        """Run it once on a stream."""
        call("cuGraphLaunch", self._handle, stream.handle)

    def close(self) -> None:
        """Destroy it."""
        if self._handle:
            _library().cuGraphExecDestroy(self._handle)
            self._handle = 0


class Event:
    """A point in a stream, with its time."""

    def __init__(self, timing: bool = True) -> None:
        handle = c_void_p()
        call("cuEventCreate", byref(handle), 0 if timing else _EVENT_DISABLE_TIMING)
        self.handle: int = handle.value or 0

    def record(self, stream: Stream) -> None:
        """Put the event after the stream's work so far."""
        call("cuEventRecord", self.handle, stream.handle)

    def milliseconds_since(self, earlier: Event) -> float:
        """Time on the device between two events that are over."""
        value = c_float()
        call("cuEventElapsedTime", byref(value), earlier.handle, self.handle)
        return value.value

    def close(self) -> None:
        """Destroy it."""
        if self.handle:
            _library().cuEventDestroy_v2(self.handle)
            self.handle = 0


def forget_runtime_error() -> None:
    """Clear the CUDA runtime library's memory of the last error in this thread.

    A failed capture leaves it set, and the next engine would take it for its own.
    """
    for name in ("libcudart.so.13", "libcudart.so.12"):
        try:
            ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW).cudaGetLastError()
        except OSError:  # not loaded in this process
            continue
