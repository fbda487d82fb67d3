"""Random changes of a training sample, drawn from a seed and applied as matrices.

What belongs to a sequence (image resize, crop, flip, rotation; BEV rotation) is one draw per walk
through it; colours and GridMask are drawn per frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import AugmentConfig

__all__ = [
    "ImageTransform",
    "SequenceAugment",
    "bev_rotation_matrix",
    "draw_grid_mask",
    "draw_photometric",
    "draw_sequence",
    "plain_grid_mask",
    "plain_photometric",
    "rotate_boxes",
]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ImageTransform:
    """Resize, crop, flip and rotation of one image, in this order.

    Coordinates are continuous: pixel (i, j) covers [j, j + 1] x [i, i + 1].
    """

    raw_size: tuple[int, int]
    """(height, width) of the file."""
    resized_size: tuple[int, int]
    left: int
    top: int
    """Upper left corner of the crop in the resized image; may lie outside."""
    size: tuple[int, int]
    """(height, width) of the result."""
    flip: bool
    rotate: float
    """Degrees, counter-clockwise as seen, about the middle of the result."""

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """(3, 3) from homogeneous raw pixels to result pixels."""
        height, width = self.size
        scale = np.diag(
            [self.resized_size[1] / self.raw_size[1], self.resized_size[0] / self.raw_size[0], 1.0]
        )
        crop = np.array([[1.0, 0.0, -self.left], [0.0, 1.0, -self.top], [0.0, 0.0, 1.0]])
        mirror = np.eye(3)
        if self.flip:
            mirror[0] = [-1.0, 0.0, width]
        angle = np.radians(self.rotate)
        cos, sin = np.cos(angle), np.sin(angle)
        # y points down: counter-clockwise as seen is the transposed rotation.
        turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        centre = np.array([width / 2, height / 2])
        turn[:2, 2] = centre - turn[:2, :2] @ centre
        return np.asarray(turn @ mirror @ crop @ scale)

    @property
    def scale(self) -> float:
        """Factor on the focal length."""
        return self.resized_size[1] / self.raw_size[1]


@dataclass(frozen=True)
class SequenceAugment:
    """One draw for a whole sequence; fractions, so that cameras of different sizes share it."""

    resize: float
    """Factor on the evaluation resize."""
    crop_x: float
    """0..1 of the room that the crop has."""
    crop_bottom: float
    """Fraction of the resized height that is cut off below."""
    flip: bool
    rotate: float
    bev: float
    """Radians."""

    def transform(self, raw_size: tuple[int, int], size: tuple[int, int]) -> ImageTransform:
        """The transform of an image of ``raw_size`` (height, width) to ``size``."""
        factor = self.resize * max(size[0] / raw_size[0], size[1] / raw_size[1])
        resized = (max(1, int(raw_size[0] * factor)), max(1, int(raw_size[1] * factor)))
        top = int((1.0 - self.crop_bottom) * resized[0]) - size[0]
        left = int(self.crop_x * max(0, resized[1] - size[1]))
        return ImageTransform(raw_size, resized, left, top, size, self.flip, self.rotate)


def draw_sequence(config: AugmentConfig, rng: np.random.Generator) -> SequenceAugment:
    """Draw what a whole walk through a sequence shares."""
    return SequenceAugment(
        resize=float(rng.uniform(*config.resize)),
        crop_x=float(rng.uniform()),
        crop_bottom=float(rng.uniform(*config.crop_bottom)),
        flip=bool(rng.random() < 0.5) and config.flip,
        rotate=float(rng.uniform(*config.rotate_degrees)),
        bev=float(rng.uniform(*config.bev_rotation)),
    )


def bev_rotation_matrix(angle: float) -> npt.NDArray[np.float64]:
    """(4, 4) rotation about z."""
    matrix = np.eye(4)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    return matrix


def rotate_boxes(boxes: Array, angle: float) -> Array:
    """Boxes (n, 9) x y z sizes yaw vx vy turned about z by ``angle`` radians."""
    turned = boxes.copy()
    turn = bev_rotation_matrix(angle)[:2, :2]
    turned[:, :2] = boxes[:, :2] @ turn.T
    turned[:, 6] = boxes[:, 6] + angle
    turned[:, 7:9] = boxes[:, 7:9] @ turn.T
    return turned


def plain_photometric(cameras: int) -> npt.NDArray[np.float32]:
    """(cameras, 8) parameters that change nothing."""
    return np.tile(np.array([0, 1, 0, 1, 0, 0, 1, 2], dtype=np.float32), (cameras, 1))


def draw_photometric(cameras: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(cameras, 8) parameters, independent per camera, each change with probability one half.

    Columns: brightness +-32; contrast 0.5..1.5; 1 where contrast comes after colour, else 0;
    saturation 0.5..1.5; hue +-18 degrees; channel order (3).
    """
    plain = plain_photometric(cameras)
    on = rng.random((cameras, 5)) < 0.5
    low, high = [-32.0, 0.5, 0.5, -18.0], [32.0, 1.5, 1.5, 18.0]
    values = rng.uniform(low, high, (cameras, 4))
    result = plain.copy()
    for column, value in ((0, 0), (1, 1), (3, 2), (4, 3)):
        result[:, column] = np.where(on[:, value], values[:, value], plain[:, column])
    result[:, 2] = rng.integers(0, 2, cameras)
    order = np.stack([rng.permutation(3) for _ in range(cameras)])
    result[:, 5:] = np.where(on[:, 4:], order, plain[:, 5:])
    return result


def plain_grid_mask() -> npt.NDArray[np.float32]:
    """(5,) parameters that mask nothing."""
    return np.array([0, 2, 1, 0, 0], dtype=np.float32)


def draw_grid_mask(
    config: AugmentConfig, size: tuple[int, int], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """(5,) on, period, width of the kept bands, row offset, column offset; pixels."""
    on = rng.random() < config.grid_mask_probability
    period = int(rng.integers(2, max(3, min(size))))
    kept = min(max(int(period * config.grid_mask_ratio + 0.5), 1), period - 1)
    row, column = rng.integers(0, period, 2)
    return np.array([on, period, kept, row, column], dtype=np.float32)
