"""From a Sparse4D checkpoint to a verified deployment artifact.

Names are loaded on first use: torch is not imported for ``s4d-export --help``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .artifact import build_manifest, save_artifact
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
    from .plan import DEFAULT_PLAN, PrecisionPlan, Rule
    from .tracing import export_graph
    from .verification import verify

_HOME = {
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
    "check_graph": ".check",
    "describe": ".inspection",
    "export_graph": ".tracing",
    "graph_contract": ".contract",
    "nuscenes_frames": ".frames",
    "random_frames": ".frames",
    "save_artifact": ".artifact",
    "to_half": ".half",
    "verify": ".verification",
}

__all__ = [
    # graph and artifact
    "GraphContract",
    "build_manifest",
    "check_graph",
    "describe",
    "export_graph",
    "graph_contract",
    "save_artifact",
    # precision
    "DEFAULT_PLAN",
    "PrecisionPlan",
    "Rule",
    "to_half",
    # comparison
    "GraphFrame",
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
