"""Deformable aggregation: image features gathered at key points of every box."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .aggregation_op import FeatureMaps, deformable_aggregation
from .box import SIZE
from .config import AggregationConfig
from .layers import full_precision, mlp_blocks, no_autocast

__all__ = ["DeformableAggregation", "KeyPoints", "project_points"]

# Points behind a camera are projected with this depth: they land far outside the image.
MIN_DEPTH = 1e-5


class KeyPoints(nn.Module):
    """Fixed and learned points in the frame of each box (REFERENCE B5.4).

    `fix_scale` is a frozen parameter. Trained checkpoints of the reference hold random values
    there (its initialisation overwrites them, golden/v3 behaviour 3), so it is always loaded.
    """

    def __init__(self, config: AggregationConfig, embed_dims: int) -> None:
        super().__init__()
        self.num_learned = config.num_learned_points
        self.fix_scale = nn.Parameter(torch.tensor(config.fixed_points), requires_grad=False)
        self.learned = nn.Linear(embed_dims, 3 * self.num_learned)

    def forward(self, box: Tensor, feature: Tensor) -> Tensor:
        """Box states (B, A, 11) and instance features (B, A, C) to points (B, A, P, 3), metres."""
        learned = self.learned(feature).unflatten(-1, (self.num_learned, 3))
        with no_autocast(box):
            learned = full_precision(learned).sigmoid() - 0.5
            fixed = self.fix_scale.expand(*learned.shape[:2], -1, -1)
            local = torch.cat([fixed, learned], dim=2) * box[..., None, SIZE].exp()
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


class DeformableAggregation(nn.Module):
    """Key points, their projection, learned weights, the operator, and [result | feature]."""

    def __init__(self, config: AggregationConfig, embed_dims: int, num_levels: int) -> None:
        super().__init__()
        self.num_groups = config.num_groups
        self.num_levels = num_levels
        self.num_points = config.num_points
        self.dropout = config.dropout
        self.key_points = KeyPoints(config, embed_dims)
        self.camera_encoder = mlp_blocks(12, embed_dims, 2)
        # Output rows: level, point, group.
        self.weights = nn.Linear(embed_dims, num_levels * self.num_points * self.num_groups)
        self.output = nn.Linear(embed_dims, embed_dims)

    def forward(
        self,
        feature: Tensor,
        box: Tensor,
        embed: Tensor,
        maps: FeatureMaps,
        lidar2img: Tensor,
        image_wh: Tensor,
    ) -> Tensor:
        """Gather image features.

        Args:
            feature, box, embed: (B, A, C), (B, A, 11), (B, A, C) of the instances.
            maps: pyramid features of all cameras.
            lidar2img: (B, N, 4, 4).
            image_wh: (B, N, 2).

        Returns:
            (B, A, 2 C): aggregated features, then `feature`.
        """
        points = self.key_points(box, feature)
        with no_autocast(box):
            locations = project_points(points, lidar2img, image_wh)
        weights = self._weights(feature + embed, lidar2img)
        gathered = deformable_aggregation(maps, locations, weights)
        return torch.cat([self.output(gathered), feature], dim=-1)

    def _weights(self, feature: Tensor, lidar2img: Tensor) -> Tensor:
        """(B, A, C) to (B, A, P, N, L, G), summing to 1 over points, cameras and levels.

        The reference applies the linear layer to feature + camera embedding, for every pair of
        instance and camera. It is linear: applying it to the two summands gives the same for a
        sixth of the work. Rows are brought into the order group, level, point first, so that the
        softmax runs over neighbouring values.
        """
        groups, levels, points = self.num_groups, self.num_levels, self.num_points
        weight = self.weights.weight.unflatten(0, (levels * points, groups)).transpose(0, 1)
        bias = self.weights.bias.unflatten(0, (levels * points, groups)).transpose(0, 1)
        weight, bias = weight.flatten(0, 1), bias.flatten(0, 1)
        with no_autocast(feature):
            camera = self.camera_encoder(lidar2img[:, :, :3].flatten(2))
        of_instance = nn.functional.linear(feature, weight, bias)
        of_camera = nn.functional.linear(camera, weight)
        of_instance = of_instance.unflatten(-1, (groups, 1, levels * points))
        of_camera = of_camera.unflatten(-1, (groups, levels * points)).transpose(1, 2)
        logits = full_precision(of_instance) + full_precision(of_camera).unsqueeze(1)
        weights = logits.flatten(-2).softmax(dim=-1)  # (B, A, G, N * L * P)
        weights = weights.unflatten(-1, (-1, levels, points))
        if self.training and self.dropout > 0:
            batch, count, _, cameras = weights.shape[:4]
            draw = torch.rand(batch, count, 1, cameras, 1, points, device=weights.device)
            weights = weights * (draw > self.dropout) / (1 - self.dropout)
        return weights.permute(0, 1, 5, 3, 4, 2).contiguous()
