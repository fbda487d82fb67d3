"""Device arrays of other libraries through DLPack, without copying them."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any

import numpy as np

from ..image_input import DeviceImage

__all__ = ["device_image"]

_CUDA = 2  # kDLCUDA
_KINDS = {0: "i", 1: "u", 2: "f"}


class _Tensor(ctypes.Structure):
    """``DLTensor`` of the DLPack specification."""

    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


def device_image(array: Any, device: int, stream: int) -> DeviceImage | None:
    """A foreign array on this CUDA device, or None if it is not on a CUDA device.

    Args:
        array: anything with ``__dlpack__`` and ``__dlpack_device__``.
        device: number of the CUDA device that will read it.
        stream: our stream; the array's library makes it wait until the array is written.

    Raises:
        ValueError: it is on another CUDA device, or of a type that numpy does not have.
    """
    if not hasattr(array, "__dlpack_device__"):
        return None
    kind, number = array.__dlpack_device__()
    if int(kind) != _CUDA:
        return None
    if int(number) != device:
        raise ValueError(f"it is on CUDA device {int(number)}, the engine on {device}")
    capsule = array.__dlpack__(stream=stream)
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.argtypes, get.restype = (ctypes.py_object, ctypes.c_char_p), c_void_p
    tensor = ctypes.cast(get(capsule, b"dltensor"), ctypes.POINTER(_Tensor)).contents
    if tensor.code not in _KINDS or tensor.lanes != 1 or tensor.bits % 8:
        raise ValueError("its element type is not one of numpy's")
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        strides = tuple(tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim))
    else:
        inner = [*shape[1:], 1]
        strides = tuple(int(np.prod(inner[i:])) * dtype.itemsize for i in range(tensor.ndim))
    address = int(tensor.data or 0) + int(tensor.byte_offset)
    # The capsule is not renamed: it keeps the array alive and frees it when it is dropped.
    return DeviceImage(address, shape, dtype, strides, capsule)
