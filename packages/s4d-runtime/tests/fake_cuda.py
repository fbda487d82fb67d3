"""Stand-ins for the CUDA driver, the image kernel and TensorRT's Python API, on the host.

The driver keeps its promises and no more: work on a stream is done when somebody waits for it, not
before, so a missing wait or a buffer that is filled too early shows as a wrong result. During a
capture nothing runs; a graph repeats what was captured, with the addresses of that time.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from s4d_ops.image import resize_crop as resize_on_host

OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700
Work = Callable[[], None]


def view(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory at an address as an array."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = (ctypes.c_ubyte * size).from_address(address)
    return np.frombuffer(memory, dtype=dtype).reshape(shape)


def number(value: Any) -> int:
    return int(value.value or 0) if hasattr(value, "value") else int(value or 0)


class FakeDriver:
    """The part of libcuda that s4d-runtime calls. Device memory is host memory.

    Attributes:
        fail: function name -> error code that its calls return from now on.
        fail_at: function name -> (n, code): the n-th call from now returns the code.
        live: addresses of live allocations and their sizes.
    """

    def __init__(self) -> None:
        self.fail: dict[str, int] = {}
        self.fail_at: dict[str, tuple[int, int]] = {}
        self.calls: Counter[str] = Counter()
        self.live: dict[int, int] = {}
        self.pinned: dict[int, int] = {}
        self.sticky = 0
        self._keep: dict[int, Any] = {}
        self._queues: dict[int, list[Work]] = {}
        self._captures: dict[int, list[Work]] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._handles = 16

    def __getattr__(self, name: str) -> Callable[..., int]:
        implementation = getattr(type(self), f"do_{name}", None)
        if not name.startswith("cu"):
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            self.calls[name] += 1
            if self.sticky and not name.startswith("cuGetError"):
                return self.sticky
            if name in self.fail_at:
                left, code = self.fail_at[name]
                self.fail_at[name] = (left - 1, code)
                if left <= 1:
                    del self.fail_at[name]
                    return self.break_device(code)
            if name in self.fail:
                return self.break_device(self.fail[name])
            return implementation(self, *arguments) or 0 if implementation else 0

        return function

    def break_device(self, code: int) -> int:
        if code >= 700:
            self.sticky = code
        return code

    def enqueue(self, stream: Any, work: Work) -> None:
        handle = number(stream)
        self._captures.get(handle, self._queues[handle]).append(work)

    def _new(self, target: Any) -> int:
        self._handles += 1
        target._obj.value = self._handles
        return self._handles

    def do_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = 1

    def do_cuDeviceGetName(self, text: Any, size: int, device: Any) -> None:
        text.value = b"Stand-in"

    def do_cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        self._new(context)

    def do_cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        total._obj.value = 1 << 34
        free._obj.value = (1 << 34) - sum(self.live.values())

    def _allocate(self, target: Any, size: int, table: dict[int, int]) -> None:
        # Poisoned, with room to align: whoever reads what nobody wrote gets nonsense.
        memory = np.full(size + 256, 0xA5, dtype=np.uint8)
        address = -(-memory.ctypes.data // 256) * 256
        self._keep[address] = memory
        table[address] = size
        target._obj.value = address

    def do_cuMemAlloc_v2(self, target: Any, size: int) -> None:
        self._allocate(target, size, self.live)

    def do_cuMemHostAlloc(self, target: Any, size: int, flags: int) -> None:
        self._allocate(target, size, self.pinned)

    def do_cuMemFree_v2(self, address: Any) -> None:
        del self.live[number(address)], self._keep[number(address)]

    def do_cuMemFreeHost(self, address: Any) -> None:
        del self.pinned[number(address)], self._keep[number(address)]

    def _copy(self, target: Any, source: Any, size: int, stream: Any) -> None:
        to, start = number(target), number(source)
        self.enqueue(stream, lambda: ctypes.memmove(to, start, size) and None)

    do_cuMemcpyDtoHAsync_v2 = do_cuMemcpyDtoDAsync_v2 = _copy

    def do_cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: int, stream: Any) -> None:
        start = number(source)
        if any(base <= start < base + length for base, length in self.pinned.items()):
            self._copy(target, source, size, stream)
            return
        # Ordinary memory has been read when the call returns.
        to, data = number(target), ctypes.string_at(start, size)
        self.enqueue(stream, lambda: ctypes.memmove(to, data, size) and None)

    def do_cuMemsetD8Async(self, target: Any, value: int, size: int, stream: Any) -> None:
        to = number(target)
        self.enqueue(stream, lambda: ctypes.memset(to, value, size) and None)

    def do_cuStreamCreate(self, stream: Any, flags: int) -> None:
        self._queues[self._new(stream)] = []

    def do_cuStreamSynchronize(self, stream: Any) -> None:
        queue = self._queues[number(stream)]
        while queue:
            queue.pop(0)()

    def do_cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> None:
        self._captures[number(stream)] = []

    def do_cuStreamEndCapture(self, stream: Any, graph: Any) -> None:
        self._graphs[self._new(graph)] = self._captures.pop(number(stream))

    def do_cuGraphInstantiateWithFlags(self, handle: Any, graph: Any, flags: int) -> None:
        self._graphs[self._new(handle)] = self._graphs[number(graph)]

    def do_cuGraphLaunch(self, graph: Any, stream: Any) -> None:
        for work in self._graphs[number(graph)]:
            self.enqueue(stream, work)

    def do_cuEventCreate(self, event: Any, flags: int) -> None:
        self._new(event)

    def do_cuEventElapsedTime(self, value: Any, start: Any, end: Any) -> None:
        value._obj.value = 0.25

    def do_cuGetErrorString(self, code: int, text: Any) -> None:
        text._obj.value = b"made by the stand-in"

    def do_cuGetErrorName(self, code: int, text: Any) -> None:
        text._obj.value = b"CUDA_ERROR_STAND_IN"

    def resize_crop(
        self, images: Any, plan: Any, out: Any, filter: str = "pillow_bicubic", stream: int = 0
    ) -> None:
        """In the place of ``s4d_ops.image_cuda.resize_crop``, uint8 only."""
        sources = [i.__cuda_array_interface__["data"][0] for i in images]
        shapes = [i.__cuda_array_interface__["shape"] for i in images]
        target = out.__cuda_array_interface__

        def work() -> None:
            result = view(target["data"][0], target["shape"], np.uint8)
            for slot, (address, shape) in enumerate(zip(sources, shapes, strict=True)):
                resize_on_host(view(address, shape, np.uint8), plan, filter, out=result[slot])

        self.enqueue(stream, work)


class FakeDeviceArray:
    """A (H, W, 3) uint8 array of another library on the stand-in's device."""

    def __init__(self, pixels: np.ndarray, device: int = 0, kind: int = 2) -> None:
        self._pixels = pixels
        self._device = (kind, device)
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, stream: int | None = None) -> Any:
        if stream is None:
            raise BufferError("not in host memory")
        self.streams.append(stream)
        return self._pixels.__dlpack__()


def fake_tensorrt(driver: FakeDriver, onnx_model: bytes, version: str = "10.14.1") -> Any:
    """A module with the parts of TensorRT's documented Python API that the backend calls.

    An "engine" is the bytes ``b"engine"``; it computes the ONNX model, on the host.
    """
    import onnxruntime as ort

    session = ort.InferenceSession(onnx_model, providers=["CPUExecutionProvider"])
    kinds = {
        "tensor(uint8)": ("UINT8", np.uint8),
        "tensor(int32)": ("INT32", np.int32),
        "tensor(float)": ("FLOAT", np.float32),
    }
    infos = {i.name: i for i in (*session.get_inputs(), *session.get_outputs())}
    inputs = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

        def log(self, severity: int, message: str) -> None:
            raise NotImplementedError

    module = SimpleNamespace(
        __version__=version,
        ILogger=ILogger,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        TensorLocation=SimpleNamespace(DEVICE="device", HOST="host"),
        TensorFormat=SimpleNamespace(LINEAR="linear", CHW32="chw32"),
        DataType=SimpleNamespace(**{n: n for n in ("UINT8", "INT32", "INT64", "HALF", "FLOAT")}),
        libraries=[],
        contexts_fail=False,
        enqueue_fails=False,
        enqueues=0,
    )

    class Context:
        def __init__(self) -> None:
            self.addresses: dict[str, int] = {}

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return name in infos and address % 256 == 0

        def execute_async_v3(self, stream_handle: int) -> bool:
            if module.enqueue_fails:
                return False
            module.enqueues += 1
            addresses = dict(self.addresses)

            def array(name: str) -> np.ndarray:
                info = infos[name]
                return view(addresses[name], tuple(info.shape), kinds[info.type][1])

            def work() -> None:
                results = session.run(outputs, {n: array(n) for n in inputs})
                for name, value in zip(outputs, results, strict=True):
                    array(name)[...] = value

            driver.enqueue(stream_handle, work)
            return True

    class Engine:
        num_io_tensors = len(infos)
        device_memory_size_v2 = 1 << 20

        def get_tensor_name(self, index: int) -> str:
            return list(infos)[index]

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name in inputs else "out"

        def get_tensor_dtype(self, name: str) -> str:
            return kinds[infos[name].type][0]

        def get_tensor_shape(self, name: str) -> list[int]:
            return list(infos[name].shape)

        def get_tensor_location(self, name: str) -> str:
            return "device"

        def get_tensor_format(self, name: str) -> str:
            return "linear"

        def create_execution_context(self) -> Context | None:
            return None if module.contexts_fail else Context()

    class Registry:
        def load_library(self, path: str) -> object:
            module.libraries.append(path)
            return object()

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        def get_plugin_registry(self) -> Registry:
            return Registry()

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            if data != b"engine":
                self._logger.log(ILogger.Severity.ERROR, "magic tag does not match")
                return None
            return Engine()

    module.Runtime = Runtime
    return module
