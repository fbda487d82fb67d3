"""From a Sparse4D checkpoint to a verified deployment artifact"""

from ._version import __version__

__all__ = ["__version__"]
