"""Raw camera images to network size, on the device.

Only the rows that survive the crop are copied. An image in pinned memory (``pinned_images``) goes
at the speed of the bus, an ordinary one at the driver's, and one on the device is not copied.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s4d_ops.errors import InvalidInputError
from s4d_ops.image import ResizeCrop
from s4d_ops.image_cuda import MAX_IMAGES, resize_crop

from ..artifact import Preprocessing, TensorSpec
from ..errors import BackendError
from ..image_input import DeviceImage, ImageInput, PreparedImage
from .driver import Device, Event, Stream
from .memory import DeviceArray, DeviceBlock, PinnedBlock

__all__ = ["ImageLoader", "needed_rows"]


def needed_rows(plan: ResizeCrop) -> tuple[int, int]:
    """First and past-the-last raw row that any resize filter reads for the plan's crop."""
    scale = plan.raw_size[0] / plan.resized_size[0]
    reach = 2.0 * max(scale, 1.0) + 1.0  # half the width of the widest filter, bicubic
    first = math.floor((plan.top + 0.5) * scale - reach)
    last = math.ceil((plan.top + plan.height - 0.5) * scale + reach)
    return max(0, first), min(plan.raw_size[0], last)


class ImageLoader:
    """Buffers that bring camera images to one engine.

    Args:
        device: where the engine runs.
        stream: the engine's stream; what ``load`` starts is ordered with the engine's work.
        preprocessing: network size and filter.
    """

    def __init__(self, device: Device, stream: Stream, preprocessing: Preprocessing) -> None:
        self._device = device
        self._stream = stream
        self.uploaded = Event()
        self._side_stream = Stream()
        self._filter = preprocessing.resize_filter
        self._size = preprocessing.image_size
        self._frame_area = _RawArea()
        self._side_area = _RawArea()
        self._side_lock = threading.Lock()
        self._slots: list[DeviceBlock] = []
        self._spare: list[DeviceArray] = []
        self._pinned: list[PinnedBlock] = []

    def load(
        self, images: Sequence[ImageInput], plans: Sequence[ResizeCrop], target: DeviceArray
    ) -> None:
        """Start filling ``target`` (N, height, width, 3). Pinned and device images must stay as
        they are until the stream has passed; ordinary ones are free on return."""
        sources: list[Any] = list(images)
        raw = [(i, image) for i, image in enumerate(images) if isinstance(image, np.ndarray)]
        self._frame_area.reserve([image.size for _, image in raw])
        for order, (camera, image) in enumerate(raw):
            sources[camera] = self._frame_area.array(order, image.shape)
            _upload(self._stream, image, plans[camera], sources[camera])
        self.uploaded.record(self._stream)
        pixels = math.prod(target.shape[1:])
        for start, stop in _runs(sources, plans):
            out = DeviceArray(
                target.address + start * pixels, (stop - start, *target.shape[1:]), "uint8", None
            )
            first = sources[start]
            if isinstance(first, PreparedImage):
                self._stream.copy(out.address, first.pixels.address, pixels)
            else:
                self._resize(sources[start:stop], plans[start], out, self._stream)

    def prepare(
        self, camera: int, image: ImageInput, plan: ResizeCrop, owner: object
    ) -> PreparedImage:
        """Upload and resize one image now; any thread may call this while a frame runs."""
        with self._side_lock:
            slot = self._spare.pop() if self._spare else self._new_slot()
            try:
                source: Any = image
                if isinstance(image, np.ndarray):
                    self._side_area.reserve([image.size])
                    source = self._side_area.array(0, image.shape)
                    _upload(self._side_stream, image, plan, source)
                self._resize([source], plan, slot, self._side_stream)
                self._side_stream.synchronize()  # the image and the raw area are free again
            except BaseException:
                self._spare.append(slot)
                raise
        return PreparedImage(owner, camera, tuple(image.shape), slot, self._spare.append)

    def pinned_images(self, sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        """Page-locked (H, W, 3) arrays to write images into; valid until ``close``."""
        specs = [TensorSpec(str(i), "uint8", (*size, 3)) for i, size in enumerate(sizes)]
        block = PinnedBlock(specs)
        self._pinned.append(block)
        return list(block.arrays.values())

    def borrow(self, array: Any) -> DeviceImage | None:
        """A foreign device array as an image, None if it is not on a CUDA device."""
        from .dlpack import device_image

        return device_image(array, self._device.index, self._stream.handle)

    def close(self) -> None:
        """Free all memory."""
        owned: list[Any] = [*self._slots, *self._pinned, self._frame_area, self._side_area]
        for block in owned:
            block.close()
        self._slots, self._spare, self._pinned = [], [], []
        self._side_stream.close()
        self.uploaded.close()

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes held on the device and in pinned memory."""
        areas = (self._frame_area.size, self._side_area.size)
        return sum(areas) + sum(s.size for s in self._slots), sum(p.size for p in self._pinned)

    def _new_slot(self) -> DeviceArray:
        block = DeviceBlock([TensorSpec("image", "uint8", (1, *self._size, 3))])
        self._slots.append(block)
        return block.arrays["image"]

    def _resize(
        self, sources: Sequence[Any], plan: ResizeCrop, out: DeviceArray, stream: Stream
    ) -> None:
        try:
            resize_crop(sources, plan, out, self._filter, stream=stream.handle)
        except InvalidInputError as error:
            stream.synchronize()  # a broken context shows here, by its own name
            raise BackendError(f"the images cannot be resized on the device: {error}") from None


class _RawArea:
    """Device memory for raw images; grows to the largest frame seen."""

    def __init__(self) -> None:
        self._block: DeviceBlock | None = None
        self._sizes: list[int] = []

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._block.size if self._block else 0

    def reserve(self, sizes: list[int]) -> None:
        """Make room for images of so many bytes."""
        pairs = list(zip_longest(sizes, self._sizes, fillvalue=0))
        if all(new <= old for new, old in pairs):
            return
        self.close()
        wanted = [max(pair) for pair in pairs]
        self._block = DeviceBlock(
            [TensorSpec(str(i), "uint8", (size,)) for i, size in enumerate(wanted)]
        )
        self._sizes = wanted

    def array(self, number: int, shape: tuple[int, ...]) -> DeviceArray:
        """The memory of one image."""
        assert self._block is not None
        return DeviceArray(self._block.arrays[str(number)].address, shape, "uint8", None)

    def close(self) -> None:
        """Free the memory."""
        if self._block:
            self._block.close()
        self._block = None
        self._sizes = []


def _upload(
    stream: Stream, image: NDArray[np.uint8], plan: ResizeCrop, target: DeviceArray
) -> None:
    """Copy the needed rows of a host image to the device."""
    first, last = needed_rows(plan)
    rows = np.ascontiguousarray(image[first:last])
    stream.upload(target.address + first * image.shape[1] * 3, rows.ctypes.data, rows.nbytes)


def _runs(sources: Sequence[Any], plans: Sequence[ResizeCrop]) -> list[tuple[int, int]]:
    """Neighbouring cameras that one kernel launch can do; prepared images stand alone."""

    def key(index: int) -> object:
        source = sources[index]
        if isinstance(source, PreparedImage):
            return index
        return plans[index], (source.strides or (source.shape[1] * 3,))[0]

    runs: list[tuple[int, int]] = []
    for index in range(len(sources)):
        start, stop = runs[-1] if runs else (0, -1)
        if stop == index and key(start) == key(index) and index - start < MAX_IMAGES:
            runs[-1] = (start, index + 1)
        else:
            runs.append((index, index + 1))
    return runs
