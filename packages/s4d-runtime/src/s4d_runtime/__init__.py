"""Sparse4D on board: artifact and camera frames in, tracked boxes out, without torch"""

from ._version import __version__

__all__ = ["__version__"]
