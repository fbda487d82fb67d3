"""The artifact ``NAME.s4d``: one zip file with a model and everything needed to run it."""

from .manifest import (
    ARTIFACT_FORMAT,
    Manifest,
    Member,
    Preprocessing,
    TensorSpec,
    Thresholds,
    check_manifest,
    decode_manifest,
)
from .reader import Artifact, read_artifact
from .writer import write_artifact

__all__ = [
    "ARTIFACT_FORMAT",
    "Artifact",
    "Manifest",
    "Member",
    "Preprocessing",
    "TensorSpec",
    "Thresholds",
    "check_manifest",
    "decode_manifest",
    "read_artifact",
    "write_artifact",
]
