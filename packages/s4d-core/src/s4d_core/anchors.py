"""Start boxes of the free instances."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .box import BOX_DIMS
from .errors import InvalidInputError

__all__ = ["default_anchors", "prepare_anchors"]

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


def default_anchors(count: int, radius: float = 54.0) -> np.ndarray:
    """Anchors without a data set: the same ones every time.

    Centres lie on a spiral that turns by the golden angle, their distance growing evenly from 0
    to `radius` metres, so that they are densest near the vehicle as clustered ones are. The other
    columns are those of the published file: height -0.8 m near the mean of its centres, log sizes
    1, sin yaw 1, cos yaw 0, no velocity. Anchors clustered from data (`s4d-train anchors`) train
    faster.

    Returns:
        (count, 11) float32.
    """
    step = np.arange(count, dtype=np.float64)
    distance = radius * (step + 0.5) / count
    angle = GOLDEN_ANGLE * step
    anchors = np.zeros((count, BOX_DIMS))
    anchors[:, 0] = distance * np.cos(angle)
    anchors[:, 1] = distance * np.sin(angle)
    anchors[:, 2] = -0.8
    anchors[:, 3:7] = 1.0
    return anchors.astype(np.float32)


def prepare_anchors(anchors: object, count: int) -> Tensor:
    """Check anchors given by a caller: an array or tensor (at least `count`, 11); more are cut.

    Raises:
        InvalidInputError: another shape, or values that are not finite.
    """
    if anchors is None:
        anchors = default_anchors(count)
    values = torch.as_tensor(anchors).detach().to(dtype=torch.float32, device="cpu")
    if values.dim() != 2 or values.shape[0] < count or values.shape[1] != BOX_DIMS:
        raise InvalidInputError(
            f"expected anchors ({count}, {BOX_DIMS}), got {tuple(values.shape)}; make a file of "
            "that many with 's4d-train anchors', or set num_anchors"
        )
    values = values[:count]
    if not bool(torch.isfinite(values).all()):
        raise InvalidInputError("expected finite anchors, got NaN or infinity")
    return values
