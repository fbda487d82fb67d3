"""What can go wrong between a checkpoint and a verified artifact, by name."""

from s4d_ops import S4DError

__all__ = [
    "EngineBuildError",
    "ExportError",
    "GraphError",
    "QuantizationError",
    "UnwritableOutputError",
    "VerificationError",
]


class ExportError(S4DError):
    """The model could not be turned into a graph."""


class GraphError(S4DError):
    """A graph breaks the contract of the exported model: operators, names, types or shapes."""


class UnwritableOutputError(S4DError):
    """The result could not be written where it was asked for. Nothing was left behind."""


class VerificationError(S4DError):
    """The comparison could not be made (a failed comparison is a result, not an error)."""


class QuantizationError(S4DError):
    """Calibration or quantisation does not fit the model or the frames."""


class EngineBuildError(S4DError):
    """No TensorRT engine could be built."""
