"""CUDA without a framework: the driver through ctypes, memory, images. Needs only the driver."""

from .driver import Device, Stream, cuda_device_problem
from .memory import DeviceArray, DeviceBlock, PinnedBlock

__all__ = [
    "Device",
    "DeviceArray",
    "DeviceBlock",
    "PinnedBlock",
    "Stream",
    "cuda_device_problem",
]
