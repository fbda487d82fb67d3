"""ONNX Runtime on the CPU.

Every input and output is bound once to a numpy array of ours, so no tensor is copied or allocated
per frame. There are two sets of state arrays and two bindings; a commit swaps their roles.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import Artifact, Manifest, TensorSpec
from ..errors import BackendError
from .base import Backend, EngineOptions
from .ort_common import DISABLED_OPTIMIZERS, check_session, first_line, register_plugin

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["OnnxRuntimeCpu"]


class OnnxRuntimeCpu(Backend):
    """``onnxruntime`` with the CPU provider."""

    name = "onnxruntime-cpu"

    def __init__(self, manifest: Manifest, session: ort.InferenceSession) -> None:
        super().__init__(manifest)
        self._session = session
        state_inputs = manifest.state
        state_outputs = {*manifest.state.values()}
        self._inputs = {t.name: _zeros(t) for t in manifest.inputs if t.name not in state_inputs}
        self._outputs = {t.name: _zeros(t) for t in manifest.outputs if t.name not in state_outputs}
        specs = {t.name: t for t in manifest.inputs}
        self._states = [{name: _zeros(specs[name]) for name in state_inputs} for _ in range(2)]
        self._current = 0
        self._bindings = [self._bind(0), self._bind(1)]

    @classmethod
    def why_not(cls, manifest: Manifest) -> str | None:
        if manifest.kind != "onnx":
            return f"it runs ONNX graphs, and this artifact holds an {manifest.kind}"
        if find_spec("onnxruntime") is None:
            return "the package onnxruntime is not installed"
        return None

    @classmethod
    def load(cls, artifact: Artifact, options: EngineOptions) -> OnnxRuntimeCpu:
        import onnxruntime as ort

        manifest = artifact.manifest
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = options.threads
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        if manifest.op == "plugin":
            register_plugin(settings, "cpu")
        from .planar_pictures import turn_pictures_first  # importing the package stays quick

        data = turn_pictures_first(artifact.read_model())
        try:
            session = ort.InferenceSession(
                data,
                settings,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(DISABLED_OPTIMIZERS),
            )
        except Exception as error:  # onnxruntime has no common error class
            raise BackendError(
                f"ONNX Runtime {ort.__version__} refused {artifact.path.name}: {first_line(error)}"
            ) from None
        check_session(session, manifest)
        return cls(manifest, session)

    def buffer(self, name: str) -> NDArray[Any]:
        return self._inputs[name]

    def run(self) -> dict[str, NDArray[Any]]:
        try:
            self._session.run_with_iobinding(self._bindings[self._current])
        except Exception as error:  # see load
            raise BackendError(f"ONNX Runtime failed on this frame: {first_line(error)}") from None
        return self._outputs

    def commit(self) -> None:
        self._current = 1 - self._current

    def clear_state(self) -> None:
        for array in self._states[self._current].values():
            array.fill(0)

    def read_state(self, name: str) -> NDArray[Any]:
        return self._states[self._current][name].copy()

    def write_state(self, name: str, value: NDArray[Any]) -> None:
        self._states[self._current][name][...] = value

    def close(self) -> None:
        self._bindings.clear()
        del self._session

    def _bind(self, current: int) -> ort.IOBinding:
        """Inputs from state set ``current``, next state into the other set."""
        binding = self._session.io_binding()
        arrays = {**self._inputs, **self._states[current]}
        following = self._states[1 - current]
        results = dict(self._outputs)
        for source, output in self.manifest.state.items():
            results[output] = following[source]
        for name, array in arrays.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in results.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding


def _zeros(spec: TensorSpec) -> NDArray[Any]:
    return np.zeros(spec.shape, dtype=spec.dtype)
