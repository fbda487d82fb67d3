"""The exception root of all s4d packages, and the causes that this package names."""

__all__ = ["InvalidInputError", "MissingLibraryError", "S4DError"]


class S4DError(Exception):
    """Root of every error that an s4d package raises on purpose.

    The message says what was expected, what came, and what to do.
    """


class InvalidInputError(S4DError, ValueError):
    """An argument has a shape, type or value that the operation does not take."""


class MissingLibraryError(S4DError, ImportError):
    """A native library is not in this installation, or cannot be loaded here."""
