"""nuScenes data, objectives, training and evaluation for Sparse4D"""

from ._version import __version__

__all__ = ["__version__"]
