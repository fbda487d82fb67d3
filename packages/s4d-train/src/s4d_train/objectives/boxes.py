"""Box columns and the encoding of ground truth into regression targets.

A ground-truth box has nine columns, `x y z l w h yaw vx vy` (LiDAR frame, metres, radians, m/s).
The network predicts eleven, `x y z log_w log_l log_h sin_yaw cos_yaw vx vy vz`, where column
`log_w` holds the size along x. A target has the first ten of them: `vz` is never supervised.
"""

from __future__ import annotations

import torch
from torch import Tensor

CENTRE = slice(0, 3)
SIZE = slice(3, 6)
DIRECTION = slice(6, 8)
"""Columns of (sin, cos) of the yaw."""
VELOCITY = slice(8, 10)

GT_SIZE = slice(3, 6)
GT_YAW = 6
GT_VELOCITY = slice(7, 9)
GT_COLUMNS = 9
TARGET_COLUMNS = 10
STATE_COLUMNS = 11


def encode_boxes(boxes: Tensor) -> Tensor:
    """Regression targets (..., 10) of ground-truth boxes (..., 9).

    Sizes become logarithms, the yaw becomes (sin, cos), the other columns stay. A NaN stays a NaN.
    """
    yaw = boxes[..., GT_YAW : GT_YAW + 1]
    return torch.cat(
        [
            boxes[..., CENTRE],
            boxes[..., GT_SIZE].log(),
            yaw.sin(),
            yaw.cos(),
            boxes[..., GT_VELOCITY],
        ],
        dim=-1,
    )
