"""What can go wrong in the LiDAR runtime, by name."""

from ..errors import OnnxFileError, S4DError

__all__ = ["LidarGraphError", "OnnxFileError", "TensorFileError"]


class LidarGraphError(S4DError):
    """The graph is not one that the sparse engine runs, or contradicts itself."""


class TensorFileError(S4DError):
    """A tensor file is truncated, has another magic number, or an unknown element type."""
