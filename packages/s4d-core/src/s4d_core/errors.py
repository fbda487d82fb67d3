"""What can go wrong in s4d-core, by name. All of it is an `S4DError`."""

from s4d_ops import InvalidInputError, S4DError

__all__ = ["CheckpointError", "ConfigError", "InvalidInputError", "S4DError"]


class ConfigError(S4DError, ValueError):
    """A configuration has an unknown field, a wrong type or an impossible value."""


class CheckpointError(S4DError):
    """A checkpoint cannot be read, or does not belong to the model it is loaded into."""
