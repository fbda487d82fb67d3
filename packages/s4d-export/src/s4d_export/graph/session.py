"""Graphs in memory on ONNX Runtime, for observation: any tensor can be an output.

The deployed path is s4d-runtime's engines; this one serves calibration and searches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from s4d_runtime.backends.ort_common import DISABLED_OPTIMIZERS

from ..errors import GraphError
from .schema import DOMAIN

__all__ = ["GraphSession"]


class GraphSession:
    """One graph on ONNX Runtime.

    Args:
        model: with every wanted tensor among its outputs (``surgery.with_outputs``).
        threads: 0 lets ONNX Runtime choose.
        optimise: False runs the nodes as they are written, which rounding studies need.

    Raises:
        GraphError: ONNX Runtime does not take the graph.
        MissingLibraryError: the graph needs the operator library, which is not installed.
    """

    def __init__(self, model: onnx.ModelProto, threads: int = 0, optimise: bool = True) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        # Searches run beside other work: threads that wait must not burn a core.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_EXTENDED if optimise else level.ORT_DISABLE_ALL
        )
        if any(node.domain in (DOMAIN, "custom") for node in model.graph.node):
            from s4d_ops import library_path

            options.register_custom_ops_library(str(library_path("onnxruntime", "cpu")))
        try:
            self._session = ort.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(DISABLED_OPTIMIZERS),
            )
        except Exception as error:  # onnxruntime has no common error class
            reason = str(error).strip().split("\n")[0][:300]
            raise GraphError(
                f"ONNX Runtime {ort.__version__} refused the graph: {reason}"
            ) from None
        self.inputs = {node.name for node in self._session.get_inputs()}
        self.outputs = [node.name for node in self._session.get_outputs()]

    def run(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Outputs by name; inputs that the graph lacks are left out."""
        given = {
            name: np.ascontiguousarray(value)
            for name, value in feeds.items()
            if name in self.inputs
        }
        names = list(outputs or self.outputs)
        try:
            values = self._session.run(names, given)
        except Exception as error:  # see __init__
            reason = str(error).strip().split("\n")[0][:300]
            raise GraphError(f"ONNX Runtime failed on the graph: {reason}") from None
        return dict(zip(names, values, strict=True))
