"""TensorRT 10 and 11: an engine artifact, replayed as two CUDA graphs.

Only calls that both versions document are used. The engine's context runs once with each of the two
sets of state addresses and is then captured with each; a frame is one graph launch.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from s4d_ops import S4DError, library_path

from ..artifact import Artifact, Manifest
from ..cuda.driver import Device, cuda_device_problem
from ..errors import (
    BackendError,
    BackendUnavailableError,
    DeviceMemoryError,
    ManifestError,
)
from .base import EngineOptions
from .device import DeviceBackend

__all__ = ["TensorRT"]

PACKAGES = ("tensorrt", "tensorrt_lean")  # the lean one runs version-compatible engines
OLDEST = 10


class TensorRT(DeviceBackend):
    """``tensorrt`` with an engine built on this kind of GPU."""

    name = "tensorrt"

    def __init__(self, manifest: Manifest, device: Device) -> None:
        super().__init__(manifest, device)
        self._version = ""
        self._logger: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None

    @classmethod
    def why_not(cls, manifest: Manifest) -> str | None:
        if manifest.kind != "engine":
            return "it runs engines, and this artifact holds an ONNX graph"
        problem = cuda_device_problem()
        if problem is not None:
            return problem
        if not any(find_spec(package) for package in PACKAGES):
            return "the package tensorrt is not installed; install s4d-runtime[tensorrt]"
        return None

    @property
    def details(self) -> str:
        return ", ".join((self._version, self._device.name, *self.notes))

    def memory(self) -> dict[str, int]:
        sizes = super().memory()
        size = getattr(self._engine, "device_memory_size_v2", None)
        return sizes if size is None else {**sizes, "engine_activations": int(size)}

    def _free_engine(self) -> None:
        # The context before its engine, the engine before its runtime, all before the stream.
        self._context = None
        self._engine = None
        self._runtime = None

    def open(self, artifact: Artifact, options: EngineOptions) -> None:
        trt = _load_tensorrt()
        self._version = f"TensorRT {trt.__version__}"
        self._logger = _make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        plugin = self._load_plugin(trt) if self.manifest.op == "plugin" else None
        self._engine = self._runtime.deserialize_cuda_engine(artifact.read_model())
        if self._engine is None:
            built = self.manifest.versions.get("tensorrt", "an unknown version")
            hint = f"; {plugin}" if plugin else ""
            raise BackendError(
                f"{self._version} refused the engine of {artifact.path.name}, which was built by "
                f"{built}: {self._logger.last_error()}{hint}; engines fit one version and kind of "
                "GPU, so build it here with s4d-export engine"
            )
        _check_engine(trt, self._engine, self.manifest)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise DeviceMemoryError(
                f"{self._version} could not make an execution context, most likely for lack of "
                f"device memory: {self._logger.last_error()}"
            )

    def _load_plugin(self, trt: ModuleType) -> str | None:
        """Make the operator known. Returns why not: the engine may carry the operator itself."""
        registry = self._runtime.get_plugin_registry()
        try:
            if registry.load_library(library_path("tensorrt")) is not None:
                return None
            return f"the operator library of s4d-ops was refused: {self._logger.last_error()}"
        except S4DError as error:
            return f"the operator library of s4d-ops is missing: {error}"
        except (RuntimeError, OSError, ValueError) as error:
            return f"the operator library of s4d-ops does not load: {str(error)[:200]}"

    def _start(self, current: int) -> None:
        for name, array in self.addresses(current).items():
            if not self._context.set_tensor_address(name, array.address):
                raise BackendError(
                    f"{self._version} refused the address of {name}: {self._logger.last_error()}"
                )
        if not self._context.execute_async_v3(self._stream.handle):
            self._stream.synchronize()  # a broken context shows here, by its own name
            raise BackendError(f"{self._version} failed on this frame: {self._logger.last_error()}")


def _load_tensorrt() -> ModuleType:
    reasons = []
    for package in PACKAGES:
        try:
            trt = importlib.import_module(package)
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(f"{package}: {str(error)[:150]}")
            continue
        if int(trt.__version__.split(".")[0]) < OLDEST:
            reasons.append(f"{package} {trt.__version__} is older than {OLDEST}")
            continue
        return trt
    raise BackendUnavailableError(f"TensorRT does not load here ({'; '.join(reasons)})")


def _make_logger(trt: ModuleType) -> Any:
    """A logger that keeps the last error. The class exists only once TensorRT is loaded."""

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._last = message.strip().split("\n")[0][:300]

        def last_error(self) -> str:
            return self._last or "no reason was logged"

    return Logger()


def _check_engine(trt: ModuleType, engine: Any, manifest: Manifest) -> None:
    """The engine's inputs and outputs must be the manifest's, on the device, row-major.

    Raises:
        ManifestError: with the first difference.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for label, mode, specs in (
        ("input", trt.TensorIOMode.INPUT, manifest.inputs),
        ("output", trt.TensorIOMode.OUTPUT, manifest.outputs),
    ):
        types = {
            "uint8": trt.DataType.UINT8,
            "int32": trt.DataType.INT32,
            "int64": trt.DataType.INT64,
            "float16": trt.DataType.HALF,
            "float32": trt.DataType.FLOAT,
        }
        found = {
            name: (engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name)))
            for name in names
            if engine.get_tensor_mode(name) == mode
        }
        declared = {t.name: (types[t.dtype], t.shape) for t in specs}
        for name in sorted({*found} | {*declared}):
            if found.get(name) != declared.get(name):
                raise ManifestError(
                    f"the manifest declares {label} {name!r} as {declared.get(name)}, "
                    f"the engine has {found.get(name)}; build the engine again"
                )
    for name in names:
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise ManifestError(f"expected {name!r} of the engine on the device, it is on the host")
        # The lean runtime cannot say: its Python package lacks the type.
        formats = getattr(trt, "TensorFormat", None)
        if formats is not None and engine.get_tensor_format(name) != formats.LINEAR:
            raise ManifestError(f"expected {name!r} of the engine in row-major order")
