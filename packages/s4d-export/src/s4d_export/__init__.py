"""From a Sparse4D checkpoint to a verified deployment artifact.

Names are loaded on first use: torch is not imported for ``s4d-export --help``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .artifact import build_manifest, save_artifact
    from .errors import (
        ExportError,
        GraphError,
        QuantizationError,
        UnwritableOutputError,
        VerificationError,
    )
    from .frames import GraphFrame, nuscenes_frames, random_frames
    from .graph.check import check_graph
    from .graph.contract import GraphContract, graph_contract
    from .graph.tracing import export_graph
    from .half.conversion import to_half
    from .half.overflow import find_overflow
    from .half.plan import DEFAULT_PLAN, PrecisionPlan, Rule
    from .inspection import describe
    from .int8.calibration import Calibration, calibrate, load_calibration
    from .int8.qat import prepare_qat, remove_qat
    from .int8.quantize import find_points, to_int8
    from .split.graphs import export_split, save_split
    from .verification.runs import examine, verify

_HOME = {
    "Calibration": ".int8.calibration",
    "DEFAULT_PLAN": ".half.plan",
    "ExportError": ".errors",
    "GraphContract": ".graph.contract",
    "GraphError": ".errors",
    "GraphFrame": ".frames",
    "PrecisionPlan": ".half.plan",
    "QuantizationError": ".errors",
    "Rule": ".half.plan",
    "UnwritableOutputError": ".errors",
    "VerificationError": ".errors",
    "build_manifest": ".artifact",
    "calibrate": ".int8.calibration",
    "check_graph": ".graph.check",
    "describe": ".inspection",
    "examine": ".verification.runs",
    "export_graph": ".graph.tracing",
    "export_split": ".split.graphs",
    "find_overflow": ".half.overflow",
    "find_points": ".int8.quantize",
    "graph_contract": ".graph.contract",
    "load_calibration": ".int8.calibration",
    "nuscenes_frames": ".frames",
    "prepare_qat": ".int8.qat",
    "random_frames": ".frames",
    "remove_qat": ".int8.qat",
    "save_artifact": ".artifact",
    "save_split": ".split.graphs",
    "to_half": ".half.conversion",
    "to_int8": ".int8.quantize",
    "verify": ".verification.runs",
}

__all__ = [
    # graph and artifact
    "GraphContract",
    "build_manifest",
    "check_graph",
    "describe",
    "export_graph",
    "export_split",
    "graph_contract",
    "save_artifact",
    "save_split",
    # precision
    "Calibration",
    "DEFAULT_PLAN",
    "PrecisionPlan",
    "Rule",
    "calibrate",
    "find_overflow",
    "find_points",
    "load_calibration",
    "prepare_qat",
    "remove_qat",
    "to_half",
    "to_int8",
    # comparison
    "GraphFrame",
    "examine",
    "nuscenes_frames",
    "random_frames",
    "verify",
    # errors
    "ExportError",
    "GraphError",
    "QuantizationError",
    "UnwritableOutputError",
    "VerificationError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value
