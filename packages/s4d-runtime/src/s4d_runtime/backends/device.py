"""What the engines on a CUDA device share: buffers, state, images, one stream.

All inputs but the images lie in one pinned block and go up in one copy; the results come back in
one. The state stays on the device, in two sets that swap their roles at each commit, so the engine
needs two sets of addresses and, as a CUDA graph, two graphs.
"""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from s4d_ops.image import ResizeCrop

from ..artifact import Artifact, Manifest
from ..cuda.driver import Device, Event, Graph, Stream, forget_runtime_error
from ..cuda.images import ImageLoader
from ..cuda.memory import DeviceArray, DeviceBlock, PinnedBlock
from ..errors import (
    BackendError,
    BackendUnavailableError,
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
)
from ..image_input import DeviceImage, ImageInput, PreparedImage
from .base import Backend, EngineOptions
from .device_state import DeviceState

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DeviceBackend"]

log = logging.getLogger("s4d_runtime")

# Engines are made and freed one after the other: they synchronise the whole device while they do,
# which CUDA forbids while another thread records a graph.
_ENGINES = threading.RLock()

STAGES = ("gpu_upload", "gpu_resize", "gpu_network", "gpu_download")

# Options that an engine may refuse, in the order in which it is loaded without them.
EXTRAS = {"fp32x3": "fp32x3", "fuse": "fused operators", "cuda_graph": "CUDA graphs"}


class DeviceBackend(Backend):
    """Base of engines on a CUDA device. A subclass binds addresses and starts the network."""

    def __init__(self, manifest: Manifest, device: Device) -> None:
        super().__init__(manifest)
        self._device = device
        self._stream = Stream()
        self._lost: DeviceLostError | None = None
        self._graphs: list[Graph] = []
        self.notes: list[str] = []  # how it runs
        specs = {t.name: t for t in manifest.inputs}
        small = [t for t in manifest.inputs if t.name not in (*manifest.state, "images")]
        results = [t for t in manifest.outputs if t.name not in {*manifest.state.values()}]
        self._resources = ExitStack()  # freed in reverse order, also when this fails midway
        self._resources.callback(self._stream.close)
        try:
            own = self._own
            self._state = DeviceState(self._stream, [specs[n] for n in manifest.state], own)
            self._inputs, self._host_inputs = own(DeviceBlock(small)), own(PinnedBlock(small))
            self._outputs, self._host_outputs = own(DeviceBlock(results)), own(PinnedBlock(results))
            self._images = own(DeviceBlock([specs["images"]]))
            self._events = [own(Event()) for _ in range(4)]  # start, inputs, network, end
            self._loader = own(ImageLoader(device, self._stream, manifest.preprocessing))
            self._state.clear_all()
            self._stream.synchronize()
        except BaseException:
            self._resources.close()
            raise
        self._host_images: PinnedBlock | None = None
        self._images_on_host = False
        self._times: dict[str, float] = {}

    @classmethod
    def load(cls, artifact: Artifact, options: EngineOptions) -> Self:
        """With what makes it fast, as far as the engine takes it; ``notes`` say what it did not."""
        fuse = options.fuse and cls.fuses(artifact.manifest)
        split = fuse and options.fp32x3 and not options.tf32 and cls.splits(artifact.manifest)
        wanted = replace(options, fuse=fuse, fp32x3=split)
        notes = [] if options.cuda_graph else ["without CUDA graphs, as asked"]
        while True:
            try:
                backend = cls._load(artifact, wanted)
            except (BackendUnavailableError, DeviceMemoryError, DeviceLostError):
                raise
            except BackendError as error:
                part = next((name for name in EXTRAS if getattr(wanted, name)), None)
                if part is None:
                    raise
                wanted = replace(wanted, **{part: False})
                notes.append(f"without {EXTRAS[part]}: {error}")
                log.warning("%s runs %s", cls.name, notes[-1])
                forget_runtime_error()  # a fresh engine follows, because this one may be confused
            else:
                backend.notes.extend(notes)
                return backend

    @classmethod
    def fuses(cls, manifest: Manifest) -> bool:
        """Whether the engine would run this graph with operators fused by s4d-ops."""
        return False

    @classmethod
    def splits(cls, manifest: Manifest) -> bool:
        """Whether these could be split products, see `EngineOptions.fp32x3`."""
        return False

    @classmethod
    def _load(cls, artifact: Artifact, options: EngineOptions) -> Self:
        with _ENGINES:
            backend = cls(artifact.manifest, Device(options.device))
            try:
                backend.open(artifact, options)
                backend.first_runs(options.cuda_graph)
            except BaseException:
                backend.close()
                raise
        return backend

    @abstractmethod
    def open(self, artifact: Artifact, options: EngineOptions) -> None:
        """Load the model into the engine and bind it to ``addresses``."""

    @abstractmethod
    def _start(self, current: int) -> None:
        """Put one run of the network on the stream, with state set ``current`` as its input."""

    def addresses(self, current: int) -> dict[str, DeviceArray]:
        """Every graph input and output by name, where the state is read from set ``current``."""
        following = self._state.arrays(1 - current)
        return {
            **self._inputs.arrays,
            **self._images.arrays,
            **self._outputs.arrays,
            **self._state.arrays(current),
            **{output: following[name] for name, output in self.manifest.state.items()},
        }

    def first_runs(self, cuda_graph: bool) -> None:
        """Run the network with both sets of addresses, then record it as two CUDA graphs.

        Raises:
            BackendError: the network does not run, or cannot be recorded.
        """
        for current in (0, 1, 0, 1):
            self._start(current)
            self._stream.synchronize()
        if cuda_graph:
            self._graphs = [self._own(self._capture(current)) for current in (0, 1)]
            for graph in self._graphs:
                graph.launch(self._stream)
            self.notes.append("two CUDA graphs")
        self._state.clear_all()
        self._stream.synchronize()

    def _capture(self, current: int) -> Graph:
        self._stream.begin_capture()
        try:
            self._start(current)
        except BaseException:
            self._stream.abort_capture()
            raise
        return self._stream.end_capture()

    def buffer(self, name: str) -> NDArray[Any]:
        if name != "images":
            return self._host_inputs.arrays[name]
        if self._host_images is None:
            images = [t for t in self.manifest.inputs if t.name == "images"]
            self._host_images = self._own(PinnedBlock(images))
        self._images_on_host = True
        return self._host_images.arrays["images"]

    def load_images(
        self, images: Sequence[ImageInput], plans: Sequence[ResizeCrop], threads: int
    ) -> None:
        with self._on_device():
            self._images_on_host = False
            self._events[0].record(self._stream)
            self._loader.load(images, plans, self._images.arrays["images"])

    def prepare_image(
        self, camera: int, image: ImageInput, plan: ResizeCrop, threads: int
    ) -> PreparedImage:
        with self._on_device():
            return self._loader.prepare(camera, image, plan, self)

    def pinned_images(self, sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        with self._on_device():
            return self._loader.pinned_images(sizes)

    def borrow_image(self, array: Any) -> DeviceImage | None:
        return self._loader.borrow(array)

    def run(self) -> dict[str, NDArray[Any]]:
        stream, events = self._stream, self._events
        with self._on_device():
            if self._images_on_host:
                assert self._host_images is not None
                events[0].record(stream)
                self._upload(self._images, self._host_images)
                self._loader.uploaded.record(stream)
            self._upload(self._inputs, self._host_inputs)
            events[1].record(stream)
            if self._graphs:
                self._graphs[self._state.current].launch(stream)
            else:
                self._start(self._state.current)
            events[2].record(stream)
            stream.download(self._host_outputs.address, self._outputs.address, self._outputs.size)
            self._state.fetch_small()
            events[3].record(stream)
            stream.synchronize()
            self._measure()
        return self._host_outputs.arrays

    def stage_milliseconds(self) -> dict[str, float]:
        return self._times

    def commit(self) -> None:
        self._state.swap()

    def clear_state(self) -> None:
        with self._on_device():
            self._state.clear()

    def read_state(self, name: str) -> NDArray[Any]:
        with self._on_device():
            return self._state.read(name)

    def write_state(self, name: str, value: NDArray[Any]) -> None:
        with self._on_device():
            self._state.write(name, value)

    def memory(self) -> dict[str, int]:
        device, pinned = self._loader.nbytes
        blocks = (self._inputs, self._outputs, self._images, self._state)
        free, total = self._device.memory()
        return {
            "device_buffers": device + sum(b.size for b in blocks),
            "pinned": pinned + self._host_inputs.size + self._host_outputs.size,
            "device_in_use_by_all": total - free,
        }

    def close(self) -> None:
        if self._stream.handle == 0:
            return
        with _ENGINES:
            with suppress(DeviceError):  # a lost device gives its memory back with the process
                self._device.make_current()
            self._free_engine()
            self._graphs = []
            self._resources.close()

    def _free_engine(self) -> None:
        """Drop what the subclass holds, before the memory that it uses."""

    def _own(self, resource: Any) -> Any:
        self._resources.callback(resource.close)
        return resource

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Around each call: the thread gets the context, and a lost device is remembered."""
        if self._lost is not None:
            raise DeviceLostError(str(self._lost))
        if self._stream.handle == 0:
            raise BackendError("this engine is closed; load the artifact again")
        self._device.make_current()
        try:
            yield
        except DeviceLostError as error:
            self._lost = error
            raise

    def _upload(self, target: DeviceBlock, source: PinnedBlock) -> None:
        self._stream.upload(target.address, source.address, source.size)

    def _measure(self) -> None:
        start, ready, done, end = self._events
        uploaded = self._loader.uploaded
        pairs = ((start, uploaded), (uploaded, ready), (ready, done), (done, end))
        self._times = {
            stage: later.milliseconds_since(earlier)
            for stage, (earlier, later) in zip(STAGES, pairs, strict=True)
        }
