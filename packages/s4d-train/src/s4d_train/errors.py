"""Named errors of s4d-train. All are `s4d_ops.S4DError`: one sentence that says what to do."""

from __future__ import annotations

from s4d_ops import S4DError

__all__ = [
    "BatchError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EvaluationError",
    "ImageFileError",
    "IndexFormatError",
    "MissingFileError",
    "MissingTableError",
    "NonFiniteError",
    "S4DError",
    "TrainError",
]


class TrainError(S4DError):
    """Root of the errors of s4d-train."""


class ConfigError(TrainError):
    """A configuration is unknown, misspelt, or asks for something impossible."""


class DataError(TrainError):
    """A data set, table, image or annotation is missing or broken."""


class MissingTableError(DataError):
    """A JSON table of a nuScenes data set is absent or cannot be read."""


class MissingFileError(DataError):
    """A file that a table names is absent."""


class ImageFileError(DataError):
    """An image or point file that exists but cannot be decoded."""


class IndexFormatError(DataError):
    """A converted index that is absent, damaged or of another format number."""


class BatchError(TrainError):
    """A batch does not have the shape that the objectives need."""


class CheckpointError(TrainError):
    """A training checkpoint is missing, truncated, or belongs to another run."""


class NonFiniteError(TrainError):
    """A loss or gradient is NaN or infinite and the run was told to stop."""


class EvaluationError(TrainError):
    """Results and data set do not fit together."""
