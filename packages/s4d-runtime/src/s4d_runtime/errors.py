"""Every error that s4d-runtime raises on purpose, by name.

All stand under ``s4d_ops.S4DError``. A message says what was expected, what came, and, where it is
not obvious, what to do.
"""

from s4d_ops import S4DError

__all__ = [
    "ArtifactError",
    "ArtifactFormatError",
    "ArtifactHashError",
    "ArtifactMemberError",
    "ArtifactStructureError",
    "BackendError",
    "BackendUnavailableError",
    "BadOutputError",
    "CalibrationError",
    "CameraCountError",
    "DatasetError",
    "DeviceError",
    "DeviceLostError",
    "DeviceMemoryError",
    "FrameError",
    "ImageError",
    "ManifestError",
    "MissingExtraError",
    "OnnxFileError",
    "OutputError",
    "PolicyError",
    "PoseError",
    "ResultsError",
    "S4DError",
    "TimestampError",
    "UsageError",
]


class ArtifactError(S4DError):
    """An artifact cannot be used. The subclasses say why."""


class ArtifactStructureError(ArtifactError):
    """The file is not a whole, plain zip file with stored members."""


class ArtifactMemberError(ArtifactError):
    """A member has a forbidden name, comes twice, is missing, or is not declared."""


class ArtifactHashError(ArtifactError):
    """A member's bytes are not those that the manifest declares."""


class ArtifactFormatError(ArtifactError):
    """The artifact's format number is not one that this version reads."""


class ManifestError(ArtifactError):
    """The manifest is not valid, or contradicts itself."""


class BackendError(S4DError):
    """An inference engine failed to load or to run a model."""


class BackendUnavailableError(BackendError):
    """The wanted engine is not installed here, or cannot run this artifact."""


class DeviceError(BackendError):
    """The CUDA device or its driver refused a call."""


class DeviceMemoryError(DeviceError):
    """No memory is left on the device. The pipeline's state is as it was."""


class DeviceLostError(DeviceError):
    """A fault on the device broke its context for the whole process; start a new one."""


class BadOutputError(BackendError):
    """The network gave NaN or infinite boxes or scores; the past is forgotten."""


class FrameError(S4DError):
    """A frame was refused. The pipeline's state is as it was before the frame."""


class CameraCountError(FrameError):
    """A camera is missing, or there are more than the model has."""


class ImageError(FrameError):
    """An image has the wrong type, shape or size."""


class CalibrationError(FrameError):
    """A camera matrix is not finite, not rigid, or belongs to another image size."""


class TimestampError(FrameError):
    """Time is not finite, goes backwards, stands still, or jumps."""


class PoseError(FrameError):
    """The vehicle's pose is not a rigid transform, or jumps further than a vehicle can move."""


class PolicyError(S4DError, ValueError):
    """A frame policy names an unknown cause or an action that the cause does not allow."""


class UsageError(S4DError, ValueError):
    """Command line options that make no sense together."""


class OnnxFileError(S4DError):
    """The bytes are not an ONNX file that can be read: truncated, malformed, or external data."""


class DatasetError(S4DError):
    """A data set in nuScenes layout lacks a file or a record, or one cannot be read."""


class ResultsError(S4DError):
    """A results file cannot be read, or does not fit the data set."""


class OutputError(S4DError, OSError):
    """A file cannot be written: no permission, no space, no such folder."""


class MissingExtraError(S4DError, ImportError):
    """A feature needs an optional package; the message names the extra to install."""
