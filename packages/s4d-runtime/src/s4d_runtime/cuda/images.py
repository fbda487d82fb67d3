"""Raw camera images to network size, on the device.

Only the rows that survive the crop are copied: worker threads move them piece by piece into
pinned memory, and each piece starts its way to the device while the next one is moved. Images in
pinned memory go without that step, images on the device without any copy.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from s4d_ops.errors import InvalidInputError
from s4d_ops.image import ResizeCrop
from s4d_ops.image_cuda import resize_crop

from ..artifact import Preprocessing, TensorSpec
from ..errors import BackendError
from ..image_input import DeviceImage, ImageInput, PreparedImage
from .driver import Device, Event, Stream, is_pinned
from .memory import DeviceArray, DeviceBlock, PinnedBlock

__all__ = ["ImageLoader", "needed_rows"]

PIECE = 1 << 19  # bytes: large enough for full copy speed, small enough to overlap
MAX_WORKERS = 8


def needed_rows(plan: ResizeCrop) -> tuple[int, int]:
    """First and past-the-last raw row that any resize filter reads for the plan's crop."""
    scale = plan.raw_size[0] / plan.resized_size[0]
    reach = 2.0 * max(scale, 1.0) + 1.0  # half the width of the widest filter, bicubic
    first = math.floor((plan.top + 0.5) * scale - reach)
    last = math.ceil((plan.top + plan.height - 0.5) * scale + reach)
    return max(0, first), min(plan.raw_size[0], last)


class ImageLoader:
    """Buffers and threads that bring camera images to one engine.

    Args:
        device: where the engine runs.
        stream: the engine's stream; what ``load`` starts is ordered with the engine's work.
        preprocessing: network size and filter.
        threads: workers that fill pinned memory, 0 for one per camera up to 8.
    """

    def __init__(
        self, device: Device, stream: Stream, preprocessing: Preprocessing, threads: int
    ) -> None:
        self._device = device
        self._stream = stream
        self.uploaded = Event()
        self._side_stream = Stream()
        self._filter = preprocessing.resize_filter
        self._size = preprocessing.image_size
        cameras = len(preprocessing.camera_names)
        workers = threads or min(cameras, os.cpu_count() or 1, MAX_WORKERS)
        self._pool = ThreadPoolExecutor(workers, "s4d-images", initializer=device.make_current)
        self._frame_area = _Staging()
        self._side_area = _Staging()
        self._side_lock = threading.Lock()
        self._slots: list[DeviceBlock] = []
        self._spare: list[DeviceArray] = []

    def load(
        self, images: Sequence[ImageInput], plans: Sequence[ResizeCrop], target: DeviceArray
    ) -> None:
        """Start filling ``target`` (N, height, width, 3); the host images are free on return,
        except pinned and device images, which must stay until the stream has passed."""
        raw = [(i, image) for i, image in enumerate(images) if isinstance(image, np.ndarray)]
        sources: list[Any] = list(images)
        area = self._frame_area
        area.reserve([image.size for _, image in raw])
        jobs = []
        for order, (camera, image) in enumerate(raw):
            sources[camera] = area.array(order, image.shape)
            jobs.append(self._pool.submit(_upload, self._stream, image, plans[camera], area, order))
        wait(jobs)  # all of them, before a failure of one is told
        for job in jobs:
            job.result()
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

    def prepare(self, camera: int, image: ImageInput, plan: ResizeCrop, owner: object) -> Any:
        """Upload and resize one image now; any thread may call this while a frame runs."""
        with self._side_lock:
            self._device.make_current()
            slot = self._spare.pop() if self._spare else self._new_slot()
            try:
                source: Any = image
                if isinstance(image, np.ndarray):
                    self._side_area.reserve([math.prod(image.shape)])
                    source = self._side_area.array(0, image.shape)
                    _upload(self._side_stream, image, plan, self._side_area, 0)
                self._resize([source], plan, slot, self._side_stream)
                self._side_stream.synchronize()  # the image and the pinned area are free again
            except BaseException:
                self._spare.append(slot)
                raise
        return PreparedImage(owner, camera, tuple(image.shape), slot, self._spare.append)

    def borrow(self, array: Any) -> DeviceImage | None:
        """A foreign device array as an image, None if it is not on a CUDA device."""
        from .dlpack import device_image

        return device_image(array, self._device.index, self._stream.handle)

    def close(self) -> None:
        """Free all memory."""
        self._pool.shutdown()
        for block in self._slots:
            block.close()
        self._slots.clear()
        self._spare = []
        self._frame_area.close()
        self._side_area.close()
        self._side_stream.close()
        self.uploaded.close()

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes held on the device and in pinned memory."""
        areas = (self._frame_area, self._side_area)
        device = sum(a.device.size for a in areas if a.device) + sum(s.size for s in self._slots)
        return device, sum(a.pinned.size for a in areas if a.pinned)

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


class _Staging:
    """Pinned and device memory for raw images; grows to the largest frame seen."""

    def __init__(self) -> None:
        self.pinned: PinnedBlock | None = None
        self.device: DeviceBlock | None = None
        self._sizes: list[int] = []

    def reserve(self, sizes: list[int]) -> None:
        """Make room for images of so many bytes."""
        if (
            self.device is not None
            and len(sizes) <= len(self._sizes)
            and all(a <= b for a, b in zip(sizes, self._sizes, strict=False))
        ):
            return
        count = max(len(sizes), len(self._sizes))
        padded = [list(s) + [0] * (count - len(s)) for s in (sizes, self._sizes)]
        wanted = [max(pair) for pair in zip(*padded, strict=True)]
        specs = [TensorSpec(str(i), "uint8", (size,)) for i, size in enumerate(wanted)]
        self.close()
        self.pinned = PinnedBlock(specs)
        self.device = DeviceBlock(specs)
        self._sizes = wanted

    def array(self, number: int, shape: tuple[int, ...]) -> DeviceArray:
        """The device memory of one image."""
        assert self.device is not None
        return DeviceArray(self.device.arrays[str(number)].address, shape, "uint8", None)

    def close(self) -> None:
        """Free the memory."""
        if self.pinned:
            self.pinned.close()
        if self.device:
            self.device.close()
        self.pinned = self.device = None
        self._sizes = []


def _upload(
    stream: Stream, image: np.ndarray, plan: ResizeCrop, area: _Staging, number: int
) -> None:
    """Copy the needed rows of a host image to the device, through pinned memory."""
    assert area.pinned is not None and area.device is not None
    first, last = needed_rows(plan)
    row = image.shape[1] * 3
    target = area.device.arrays[str(number)].address
    packed = image.strides == (row, 3, 1)
    if packed and is_pinned(image.ctypes.data):
        stream.upload(target + first * row, image.ctypes.data + first * row, (last - first) * row)
        return
    pinned = area.pinned.arrays[str(number)][: image.size].reshape(image.shape)
    step = max(1, PIECE // row)
    for start in range(first, last, step):
        stop = min(start + step, last)
        np.copyto(pinned[start:stop], image[start:stop])
        size = (stop - start) * row
        stream.upload(target + start * row, pinned.ctypes.data + start * row, size)


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
        if stop == index and key(start) == key(index) and index - start < 16:
            runs[-1] = (start, index + 1)
        else:
            runs.append((index, index + 1))
    return runs
