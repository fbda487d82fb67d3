"""Points at which a box looks at the images, and where cameras see them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .box import SIZE
from .config import AggregationConfig
from .layers import full_precision, no_autocast

__all__ = ["KeyPoints", "place_points", "project_points"]

# Points behind a camera are projected with this depth: they land far outside the image.
MIN_DEPTH = 1e-5


class KeyPoints(nn.Module):
    """Fixed and learned points in the frame of each box (REFERENCE B5.4).

    In v3 `fix_scale` is a frozen weight. Trained checkpoints of the reference hold random values
    there (its initialisation overwrites them, golden/v3 behaviour 3), so it is always loaded. In
    v1 and v2 it is a constant.
    """

    fix_scale: Tensor

    def __init__(self, config: AggregationConfig, embed_dims: int) -> None:
        super().__init__()
        self.num_learned = config.num_learned_points
        if config.stored_points:
            points = torch.tensor(config.fixed_points)
            self.fix_scale = nn.Parameter(points, requires_grad=False)
        else:
            # On the CPU even where weights are made without values: these are constants.
            points = torch.tensor(config.fixed_points, device="cpu")
            self.register_buffer("fix_scale", points, persistent=False)
        self.learned = nn.Linear(embed_dims, 3 * self.num_learned)

    def forward(self, box: Tensor, feature: Tensor) -> Tensor:
        """Box states (B, A, 11) and instance features (B, A, C) to points (B, A, P, 3), metres."""
        learned = self.learned(feature).unflatten(-1, (self.num_learned, 3))
        with no_autocast(box):
            learned = full_precision(learned).sigmoid() - 0.5
            fixed = self.fix_scale.expand(*learned.shape[:2], -1, -1)
            return place_points(torch.cat([fixed, learned], dim=2), box)


def place_points(scale: Tensor, box: Tensor) -> Tensor:
    """Points (B, A, P, 3) in metres, of factors (B, A, P, 3) of the sizes of (B, A, 11) boxes."""
    local = scale * box[..., None, SIZE].exp()
    sin, cos = box[..., None, 6], box[..., None, 7]
    x, y, z = local.unbind(-1)
    return torch.stack(
        [
            cos * x - sin * y + box[..., None, 0],
            sin * x + cos * y + box[..., None, 1],
            z + box[..., None, 2],
        ],
        dim=-1,
    )


def project_points(points: Tensor, lidar2img: Tensor, image_wh: Tensor) -> Tensor:
    """Points in the LiDAR frame to every camera's image.

    Args:
        points: (B, A, P, 3) metres.
        lidar2img: (B, N, 4, 4) to pixels of the network input.
        image_wh: (B, N, 2) width and height in pixels.

    Returns:
        (B, A, P, N, 2), (x, y) with 0..1 over the image.
    """
    x, y, z = (points[..., None, i] for i in range(3))  # (B, A, P, 1)
    m = lidar2img[:, None, None]  # (B, 1, 1, N, 4, 4)
    u = m[..., 0, 0] * x + m[..., 0, 1] * y + m[..., 0, 2] * z + m[..., 0, 3]
    v = m[..., 1, 0] * x + m[..., 1, 1] * y + m[..., 1, 2] * z + m[..., 1, 3]
    w = m[..., 2, 0] * x + m[..., 2, 1] * y + m[..., 2, 2] * z + m[..., 2, 3]
    depth = w.clamp(min=MIN_DEPTH)
    size = image_wh[:, None, None]
    return torch.stack([u / depth / size[..., 0], v / depth / size[..., 1]], dim=-1)
