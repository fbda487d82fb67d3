"""Typed settings of the data half: what is read, how it is augmented."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["CAMERA_NAMES", "CLASS_NAMES", "AugmentConfig", "DataConfig"]

# Both lists stand in s4d_core.config too. Importing that loads torch, which conversion and each
# of its workers do without; tests/test_settings.py keeps the two equal.
CLASS_NAMES: tuple[str, ...] = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""Class order of every Sparse4D checkpoint."""

CAMERA_NAMES: tuple[str, ...] = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
"""Camera order of every released Sparse4D checkpoint."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training sample. Ranges are inclusive, drawn uniformly.

    The resize range is relative to the evaluation resize, max(H/raw_H, W/raw_W): the published
    0.40..0.47 at 256x704 from 1600x900 is 0.40/0.44..0.47/0.44. So one setting serves any size.
    """

    resize: tuple[float, float] = (0.40 / 0.44, 0.47 / 0.44)
    crop_bottom: tuple[float, float] = (0.0, 0.0)
    """Fraction of the resized height that is cut off below."""
    rotate_degrees: tuple[float, float] = (-5.4, 5.4)
    flip: bool = True
    """All views mirrored together, with probability one half."""
    bev_rotation: tuple[float, float] = (-0.3925, 0.3925)
    """Radians about the LiDAR's vertical axis."""
    photometric: bool = True
    """Per camera: brightness +-32, contrast and saturation 0.5..1.5, hue +-18 degrees of 360
    (as OpenCV's float HSV counts them), channel order, each with probability one half."""
    grid_mask_probability: float = 0.7
    grid_mask_ratio: float = 0.5
    fast_decode: bool = True
    """Let the JPEG decoder shrink by 2, 4 or 8 where the result is still larger than needed."""


@dataclass(frozen=True)
class DataConfig:
    """What is read from a converted index (``s4d-train convert``)."""

    index: str = ""
    """Folder of the converted index."""
    root: str = ""
    """Folder of the data set; empty = the one that the index names."""
    image_size: tuple[int, int] = (256, 704)
    """Network size, (height, width)."""
    camera_names: tuple[str, ...] = CAMERA_NAMES
    class_names: tuple[str, ...] = CLASS_NAMES
    resize_filter: str = "pillow_bicubic"
    """As the checkpoint's: pillow_bicubic, pillow_bilinear or cv2_linear."""
    max_distance: float = 55.0
    """Ground truth farther than this from the LiDAR (in the plane, metres) is dropped."""
    require_points: bool = True
    """Drop boxes without a LiDAR point."""
    depth_strides: tuple[int, ...] = (4, 8, 16)
    """Strides of the depth maps; empty = none are made and no LiDAR file is read."""
    max_depth: float = 60.0
    sequence_parts: int = 2
    """Every scene is cut into this many training sequences; 0 = every frame alone."""
    skip_probability: float = 0.5
    """Chance of dropping one frame before the next of a sequence."""
    reverse_probability: float = 0.1
    """Chance of walking a sequence backwards in time."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
