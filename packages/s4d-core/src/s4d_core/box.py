"""The box state: its 11 columns, and how it moves from one frame to the next.

Columns: x y z, log w, log l, log h, sin yaw, cos yaw, vx vy vz. LiDAR frame of the sample,
metres, radians, seconds; "w" is the size along the box's own x axis (REFERENCE 0.1).

All of it is written as multiply-adds of columns, not as batched 3x3 products: those are slow in
every framework, and half-precision matrix units would take part in them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BOX_DIMS", "SIZE", "VELOCITY", "YAW", "decode_boxes", "project_boxes"]

BOX_DIMS = 11
POSITION = slice(0, 3)
SIZE = slice(3, 6)
YAW = slice(6, 8)  # sin, cos
VELOCITY = slice(8, 11)


def decode_boxes(box: Tensor) -> Tensor:
    """(..., 11) box state to (..., 10) `x y z w l h yaw vx vy vz`, sizes in metres."""
    yaw = torch.atan2(box[..., 6], box[..., 7])
    return torch.cat(
        [box[..., POSITION], box[..., SIZE].exp(), yaw.unsqueeze(-1), box[..., VELOCITY]], dim=-1
    )


def project_boxes(
    box: Tensor, transform: Tensor, time_interval: Tensor, legacy_yaw_order: bool
) -> Tensor:
    """Move boxes of the previous frame into the current one.

    Args:
        box: (B, A, 11) box states in the previous LiDAR frame.
        transform: (B, 4, 4), previous LiDAR frame to the current one.
        time_interval: (B,) seconds between the frames; boxes move on by velocity x interval.
        legacy_yaw_order: write the rotated (cos, sin) into columns (sin, cos), REFERENCE 0.3.

    Returns:
        (B, A, 11) in the current LiDAR frame; sizes are unchanged.
    """
    m = transform[:, None]  # (B, 1, 4, 4): one value per sample against (B, A)
    vx, vy, vz = box[..., 8], box[..., 9], box[..., 10]
    dt = time_interval[:, None]
    x, y, z = box[..., 0] + vx * dt, box[..., 1] + vy * dt, box[..., 2] + vz * dt
    sin, cos = box[..., 6], box[..., 7]
    new_cos = m[..., 0, 0] * cos + m[..., 0, 1] * sin
    new_sin = m[..., 1, 0] * cos + m[..., 1, 1] * sin
    columns = [
        m[..., 0, 0] * x + m[..., 0, 1] * y + m[..., 0, 2] * z + m[..., 0, 3],
        m[..., 1, 0] * x + m[..., 1, 1] * y + m[..., 1, 2] * z + m[..., 1, 3],
        m[..., 2, 0] * x + m[..., 2, 1] * y + m[..., 2, 2] * z + m[..., 2, 3],
        box[..., 3],
        box[..., 4],
        box[..., 5],
        *((new_cos, new_sin) if legacy_yaw_order else (new_sin, new_cos)),
        m[..., 0, 0] * vx + m[..., 0, 1] * vy + m[..., 0, 2] * vz,
        m[..., 1, 0] * vx + m[..., 1, 1] * vy + m[..., 1, 2] * vz,
        m[..., 2, 0] * vx + m[..., 2, 1] * vy + m[..., 2, 2] * vz,
    ]
    return torch.stack(columns, dim=-1)
