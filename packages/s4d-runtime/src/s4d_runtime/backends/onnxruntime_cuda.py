"""ONNX Runtime's CUDA provider, replayed as CUDA graphs.

The session runs on our stream with every input and output bound to device memory of ours. After
ordinary runs, which let it choose its convolutions and fill its arena, one run for each of the two
state orders is captured; a frame is then one graph launch, without ONNX Runtime.

We capture ourselves because ONNX Runtime keeps its graphs per thread. Its own switch is on all the
same: it refuses graphs with work on the CPU, which a replay would leave out, and it keeps the host
buffers that a replay reads again.
"""

from __future__ import annotations

import re
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..artifact import Artifact, Manifest
from ..cuda.driver import Device, cuda_device_problem, device_error, out_of_memory
from ..errors import (
    BackendError,
    BackendUnavailableError,
    DeviceError,
)
from .base import EngineOptions
from .device import DeviceBackend
from .ort_common import DISABLED_OPTIMIZERS, check_session, first_line, register_plugin

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["OnnxRuntimeCuda"]

PROVIDER = "CUDAExecutionProvider"

# Measured on an H200. In half precision the default layout keeps convolutions off the tensor cores
# (16.6 ms for R50, 7.6 ms so); in single precision it is the faster one (18.0 ms, 19.5 ms).
CONVOLUTIONS = {
    "fp16": {"prefer_nhwc": "1", "fuse_conv_bias": "1", "cudnn_conv_algo_search": "HEURISTIC"},
    "fp32": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
}


class OnnxRuntimeCuda(DeviceBackend):
    """``onnxruntime-gpu`` with the CUDA provider."""

    name = "onnxruntime-cuda"

    def __init__(self, manifest: Manifest, device: Device) -> None:
        super().__init__(manifest, device)
        self._tf32 = False
        self._fused = (0, 0)
        self._fp32x3 = False
        self._session: Any = None
        self._run_options: Any = None
        self._bindings: list[ort.IOBinding] = []

    @classmethod
    def why_not(cls, manifest: Manifest) -> str | None:
        if manifest.kind != "onnx":
            return f"it runs ONNX graphs, and this artifact holds an {manifest.kind}"
        problem = cuda_device_problem()
        if problem is not None:
            return problem
        if find_spec("onnxruntime") is None:
            return "the package onnxruntime-gpu is not installed"
        import onnxruntime as ort

        if PROVIDER not in ort.get_available_providers():
            if all(_installed(name) for name in ("onnxruntime", "onnxruntime-gpu")):
                return (
                    "onnxruntime hides onnxruntime-gpu, which has the same files: uninstall "
                    "onnxruntime, then reinstall onnxruntime-gpu with --force-reinstall --no-deps"
                )
            return "the installed onnxruntime has no CUDA provider; install s4d-runtime[gpu]"
        return None

    @property
    def details(self) -> str:
        tf32 = "TF32 on" if self._tf32 else "TF32 off"
        convolutions, chains = self._fused
        fused = (
            (f"{convolutions} convolutions and {chains} chains fused",) if any(self._fused) else ()
        )
        products = ("fp32x3",) if self._fp32x3 else ()
        return ", ".join((self._device.name, tf32, *products, *fused, *self.notes))

    @property
    def advice(self) -> str:
        return "; fp32x3=False holds values beyond 65504" if self._fp32x3 else ""

    @classmethod
    def fuses(cls, manifest: Manifest) -> bool:
        return manifest.op == "plugin"

    @classmethod
    def splits(cls, manifest: Manifest) -> bool:
        return manifest.precision == "fp32"

    def _free_engine(self) -> None:
        self._bindings = []
        self._session = None

    def open(self, artifact: Artifact, options: EngineOptions) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = 1  # the host only starts kernels
        if artifact.manifest.op == "plugin":
            register_plugin(settings, "cuda")
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN from pip packages, where they are
        self._tf32 = options.tf32
        data = artifact.read_model()
        half = artifact.manifest.precision == "fp16"
        if options.fuse:
            from .fusion import fuse_model  # here, because importing the package must stay quick

            data, convolutions, chains, others, products = fuse_model(data, options.fp32x3)
            self._fused = convolutions, chains
            self._fp32x3 = products > 0
            # A graph without convolutions of ONNX Runtime's own is the faster in its own layout.
            half = half and (others > 0 or convolutions == 0)
        provider = {
            "device_id": str(options.device),
            "user_compute_stream": str(self._stream.handle),
            "use_tf32": "1" if options.tf32 else "0",
            **CONVOLUTIONS["fp16" if half else "fp32"],
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": "1" if options.cuda_graph else "0",
        }
        # It logs each fusion that cuDNN declines as an error, though it then does without.
        ort.set_default_logger_severity(4)
        try:
            session = ort.InferenceSession(
                data,
                settings,
                providers=[(PROVIDER, provider), "CPUExecutionProvider"],
                disabled_optimizers=list(DISABLED_OPTIMIZERS),
                enable_fallback=0,  # else a failure here becomes a slow session without a word
            )
        except Exception as error:  # onnxruntime has no common error class
            where = f"ONNX Runtime {ort.__version__} refused {artifact.path.name}"
            raise _named(error, where) from None
        finally:
            ort.set_default_logger_severity(2)  # its default
        if PROVIDER not in session.get_providers():
            raise BackendUnavailableError(
                f"ONNX Runtime {ort.__version__} has a CUDA provider, but it does not load: CUDA "
                "or cuDNN libraries are missing; install s4d-runtime[gpu]"
            )
        check_session(session, self.manifest)
        self._session = session
        self._run_options = ort.RunOptions()
        # We wait once a frame, when the results are on the host, not once a run.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._run_options.add_run_config_entry("gpu_graph_id", "-1")  # no capture of its own
        self._bindings = [self._bind(0), self._bind(1)]

    def _start(self, current: int) -> None:
        try:
            self._session.run_with_iobinding(self._bindings[current], self._run_options)
        except Exception as error:  # see _open
            raise _named(error, "ONNX Runtime failed on this frame") from None

    def _bind(self, current: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        inputs = {t.name for t in self.manifest.inputs}
        for name, array in self.addresses(current).items():
            bind = binding.bind_input if name in inputs else binding.bind_output
            bind(name, "cuda", self._device.index, array.dtype, array.shape, array.address)
        return binding


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _named(error: Exception, where: str) -> BackendError:
    """ONNX Runtime's text as one of our errors: memory, a lost device, or neither."""
    text = str(error)
    failure = re.search(r"(CUDA|CUBLAS|CUDNN) failure (\d+): ?([^;]*)", text)
    if failure is not None and failure[1] == "CUDA":
        return device_error(int(failure[2]), where)
    if re.search(r"ailed to allocate|out of memory|ALLOC(ATION)?_FAILED|allocation failed", text):
        return out_of_memory(where)
    if failure is not None:
        return DeviceError(f"{where}: {failure[0].strip()}")
    return BackendError(f"{where}: {first_line(error)}")
