"""Data sets in nuScenes layout, read from their JSON tables without the devkit."""

from .classes import CLASS_RANGE, DETECTION_NAMES, TRACKING_NAMES, attribute_name, detection_name
from .dataset import NuScenes
from .records import CAMERA_ORDER, Annotations, CameraRecord, Sample, Scene
from .submission import SubmissionWriter, read_results

__all__ = [
    "CAMERA_ORDER",
    "CLASS_RANGE",
    "DETECTION_NAMES",
    "TRACKING_NAMES",
    "Annotations",
    "CameraRecord",
    "NuScenes",
    "Sample",
    "Scene",
    "SubmissionWriter",
    "attribute_name",
    "detection_name",
    "read_results",
]
