"""What may stand in ``Frame.images``, besides numpy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["DeviceImage", "ImageInput", "PreparedImage"]


class DeviceImage:
    """A raw image in device memory, borrowed from a foreign array.

    Attributes:
        address: of the first pixel, on the device.
        shape: (H, W, channels).
        dtype: numpy's name for the element type.
        strides: bytes, (row, pixel, channel).
    """

    ndim = 3

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        strides: tuple[int, ...],
        owner: object,
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self.strides = strides
        self.ndim = len(shape)
        self._owner = owner  # keeps the memory alive
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (address, True),
            "strides": strides,
            "version": 3,
        }


class PreparedImage:
    """An image at network size inside an engine, made by ``Pipeline.prepare``.

    It is valid for frames of the pipeline that made it, any number of times, as long as it is
    held; its memory returns to the engine when it is dropped.

    Attributes:
        camera: the camera's index in the manifest's order.
        shape: (H, W, 3) of the raw image.
    """

    ndim = 3

    def __init__(
        self,
        owner: object,
        camera: int,
        shape: tuple[int, ...],
        pixels: Any,
        release: Callable[[Any], None] | None = None,
    ) -> None:
        self.camera = camera
        self.shape = shape
        self._owner = owner
        self._pixels = pixels
        self._release = release

    def belongs_to(self, owner: object) -> bool:
        """Whether this engine made it."""
        return self._owner is owner

    @property
    def pixels(self) -> Any:
        """The engine's memory: (height, width, 3) uint8 at network size."""
        return self._pixels

    def __del__(self) -> None:
        release = getattr(self, "_release", None)
        if release is not None:
            release(self._pixels)


ImageInput: TypeAlias = NDArray[np.uint8] | DeviceImage | PreparedImage
