"""Sparse4D on board: artifact and camera frames in, tracked boxes out, without torch.

Public names are loaded on first use, so that importing the package, or asking the command line
for help, costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .artifact import ARTIFACT_FORMAT, Artifact, Manifest, read_artifact, write_artifact
    from .errors import ArtifactError, BackendError, FrameError, S4DError
    from .frame import Camera, Detections, Frame
    from .pipeline import FrameReport, Pipeline
    from .policy import FramePolicy

__all__ = [
    "ARTIFACT_FORMAT",
    "Artifact",
    "ArtifactError",
    "BackendError",
    "Camera",
    "Detections",
    "Frame",
    "FrameError",
    "FramePolicy",
    "FrameReport",
    "Manifest",
    "Pipeline",
    "S4DError",
    "__version__",
    "read_artifact",
    "write_artifact",
]

_HOME = {
    "ARTIFACT_FORMAT": ".artifact",
    "Artifact": ".artifact",
    "ArtifactError": ".errors",
    "BackendError": ".errors",
    "Camera": ".frame",
    "Detections": ".frame",
    "Frame": ".frame",
    "FrameError": ".errors",
    "FramePolicy": ".policy",
    "FrameReport": ".pipeline",
    "Manifest": ".artifact",
    "Pipeline": ".pipeline",
    "S4DError": ".errors",
    "read_artifact": ".artifact",
    "write_artifact": ".artifact",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
