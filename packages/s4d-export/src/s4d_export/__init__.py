"""From a Sparse4D checkpoint to a verified deployment artifact.

Names are loaded on first use: torch is not imported for ``s4d-export --help``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .artifact import build_manifest, save_artifact
    from .calibration import Calibration, calibrate, load_calibration
    from .check import check_graph
    from .contract import GraphContract, graph_contract
    from .errors import (
        ExportError,
        GraphError,
        QuantizationError,
        UnwritableOutputError,
        VerificationError,
    )
    from .frames import GraphFrame, nuscenes_frames, random_frames
    from .half import to_half
    from .inspection import describe
    from .overflow import find_overflow
    from .plan import DEFAULT_PLAN, PrecisionPlan, Rule
    from .qat import prepare_qat, remove_qat
    from .quantize import find_points, to_int8
    from .split import export_split, save_split
    from .tracing import export_graph
    from .verification import examine, verify

_HOME = {
    "Calibration": ".calibration",
    "DEFAULT_PLAN": ".plan",
    "ExportError": ".errors",
    "GraphContract": ".contract",
    "GraphError": ".errors",
    "GraphFrame": ".frames",
    "PrecisionPlan": ".plan",
    "QuantizationError": ".errors",
    "Rule": ".plan",
    "UnwritableOutputError": ".errors",
    "VerificationError": ".errors",
    "build_manifest": ".artifact",
    "calibrate": ".calibration",
    "check_graph": ".check",
    "describe": ".inspection",
    "examine": ".verification",
    "export_graph": ".tracing",
    "export_split": ".split",
    "find_overflow": ".overflow",
    "find_points": ".quantize",
    "graph_contract": ".contract",
    "load_calibration": ".calibration",
    "nuscenes_frames": ".frames",
    "prepare_qat": ".qat",
    "random_frames": ".frames",
    "remove_qat": ".qat",
    "save_artifact": ".artifact",
    "save_split": ".split",
    "to_half": ".half",
    "to_int8": ".quantize",
    "verify": ".verification",
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
