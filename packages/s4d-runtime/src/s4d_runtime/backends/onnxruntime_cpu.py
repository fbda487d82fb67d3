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
from ..errors import BackendError, BackendUnavailableError, ManifestError
from .base import Backend

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["OnnxRuntimeCpu"]

_ORT_TYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
}

# With blocked convolutions (NCHWc), ONNX Runtime 1.31 moves boxes of graphs with our operator by
# up to 8 mm from those of the unoptimised graph; without, 0.3 mm. It costs about 12 % of the time.
_DISABLED_OPTIMIZERS = ["NchwcTransformer"]


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
    def load(cls, artifact: Artifact, threads: int) -> OnnxRuntimeCpu:
        import onnxruntime as ort

        manifest = artifact.manifest
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        if manifest.op == "plugin":
            register_plugin(options, "cpu")
        data = artifact.read_model()
        try:
            session = ort.InferenceSession(
                data,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_DISABLED_OPTIMIZERS,
            )
        except Exception as error:  # onnxruntime has no common error class
            raise BackendError(
                f"ONNX Runtime {ort.__version__} refused {artifact.path.name}: {_first_line(error)}"
            ) from None
        check_session(session, manifest)
        return cls(manifest, session)

    def buffer(self, name: str) -> NDArray[Any]:
        return self._inputs[name]

    def run(self) -> dict[str, NDArray[Any]]:
        try:
            self._session.run_with_iobinding(self._bindings[self._current])
        except Exception as error:  # see load
            raise BackendError(f"ONNX Runtime failed on this frame: {_first_line(error)}") from None
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


def register_plugin(options: ort.SessionOptions, device: str) -> None:
    """Give ONNX Runtime the library with ``s4d::DeformableAggregation``.

    Raises:
        BackendUnavailableError: the library is absent or does not load.
    """
    from s4d_ops import S4DError, library_path

    try:
        options.register_custom_ops_library(library_path("onnxruntime", device))
    except S4DError as error:
        raise BackendUnavailableError(
            f"this artifact needs the operator library of s4d-ops: {error}; "
            "or export it with --op standard"
        ) from None
    except Exception as error:
        raise BackendUnavailableError(
            f"ONNX Runtime cannot load the operator library of s4d-ops: {_first_line(error)}"
        ) from None


def check_session(session: ort.InferenceSession, manifest: Manifest) -> None:
    """The graph's inputs and outputs must be the manifest's.

    Raises:
        ManifestError: with the first difference.
    """
    for label, nodes, specs in (
        ("input", session.get_inputs(), manifest.inputs),
        ("output", session.get_outputs(), manifest.outputs),
    ):
        found = {n.name: (_ORT_TYPES.get(n.type, n.type), _shape(n.shape)) for n in nodes}
        declared = {t.name: (t.dtype, t.shape) for t in specs}
        for name in sorted({*found} | {*declared}):
            if found.get(name) != declared.get(name):
                raise ManifestError(
                    f"the manifest declares {label} {name!r} as {declared.get(name)}, "
                    f"the graph has {found.get(name)}; export the model again"
                )


def _shape(shape: list[Any]) -> tuple[Any, ...]:
    return tuple(d if isinstance(d, int) else str(d) for d in shape)


def _zeros(spec: TensorSpec) -> NDArray[Any]:
    return np.zeros(spec.shape, dtype=spec.dtype)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
