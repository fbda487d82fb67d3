"""Deformable aggregation: image features gathered at key points of every box."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .aggregation_op import deformable_aggregation
from .config import Sparse4DConfig
from .key_points import KeyPoints, project_points
from .layers import full_precision, mlp_blocks, no_autocast
from .temporal_sampling import LinearFusion, Scene, View

__all__ = ["DeformableAggregation"]


class DeformableAggregation(nn.Module):
    """Key points, their projection, learned weights, the operator, and an output layer."""

    def __init__(self, config: Sparse4DConfig) -> None:
        super().__init__()
        part, dims = config.aggregation, config.embed_dims
        self.num_groups = part.num_groups
        self.num_levels = config.neck.num_levels
        self.num_points = part.num_points
        self.dropout = part.dropout
        self.key_points = KeyPoints(part, dims)
        rows = self.num_levels * self.num_points * self.num_groups
        # Output rows: [camera,] level, point, group.
        self.camera_encoder = mlp_blocks(12, dims, 2) if part.camera_embedding else None
        self.weights = nn.Linear(dims, rows if part.camera_embedding else config.num_cameras * rows)
        self.fusion = LinearFusion(config.queue, dims) if config.queue is not None else None
        self.output = nn.Linear(dims, dims)
        self.output_dropout = nn.Dropout(part.output_dropout)

    def forward(self, feature: Tensor, box: Tensor, embed: Tensor, scene: Scene) -> Tensor:
        """Gather image features.

        Args:
            feature, box, embed: (B, A, C), (B, A, 11), (B, A, C) of the instances.
            scene: what they look at.

        Returns:
            (B, A, C) aggregated features.
        """
        points = self.key_points(box, feature)
        if self.fusion is None and scene.reweight is None:
            weights = self._weights(feature + embed, scene.view.lidar2img)
            gathered = self._gather(points, weights, scene.view, scene.image_wh)
        else:
            seen = self._look(feature, box, embed, points, scene.view, scene)
            if self.fusion is not None:
                history = []
                for other, their_box, their_embed in scene.others:
                    with no_autocast(box):
                        moved = other.points(points, box[..., 8:11])
                    value = self._look(feature, their_box, their_embed, moved, other.view, scene)
                    history.append((other, value))
                seen = self.fusion(history, seen)
            gathered = seen.sum(dim=2)
        result: Tensor = self.output_dropout(self.output(gathered))
        return result

    def _look(
        self,
        feature: Tensor,
        box: Tensor,
        embed: Tensor,
        points: Tensor,
        view: View,
        scene: Scene,
    ) -> Tensor:
        """Features of single points in frame `view`, (B, A, P, C), weighted by distance.

        Weights come from the cameras of the current frame, as in the reference.
        """
        count = points.shape[2]
        weights = self._weights(feature + embed, scene.view.lidar2img)
        # To the operator every point is an instance with one point.
        gathered = self._gather(
            points.flatten(1, 2).unsqueeze(2),
            weights.flatten(1, 2).unsqueeze(2),
            view,
            scene.image_wh,
        )
        gathered = gathered.unflatten(1, (-1, count))
        return gathered if scene.reweight is None else scene.reweight(gathered, box)

    def _gather(self, points: Tensor, weights: Tensor, view: View, image_wh: Tensor) -> Tensor:
        """Sum over points, cameras and levels: (B, A, C)."""
        with no_autocast(points):
            locations = project_points(points, view.lidar2img, image_wh)
        return deformable_aggregation(view.maps, locations, weights)

    def _weights(self, feature: Tensor, lidar2img: Tensor) -> Tensor:
        """(B, A, C) to (B, A, P, N, L, G), summing to 1 over points, cameras and levels.

        The reference applies the linear layer to feature + camera embedding, for every pair of
        instance and camera. It is linear: applying it to the two summands gives the same for a
        sixth of the work. Rows are brought into the order group, [camera,] level, point first, so
        that the softmax runs over neighbouring values.
        """
        groups, levels, points = self.num_groups, self.num_levels, self.num_points
        weight = self.weights.weight.unflatten(0, (-1, groups)).transpose(0, 1)
        bias = self.weights.bias.unflatten(0, (-1, groups)).transpose(0, 1)
        weight, bias = weight.flatten(0, 1), bias.flatten(0, 1)
        of_instance = nn.functional.linear(feature, weight, bias)
        logits = full_precision(of_instance)
        if self.camera_encoder is None:
            logits = logits.unflatten(-1, (groups, -1))
        else:
            with no_autocast(feature):
                camera = self.camera_encoder(lidar2img[:, :, :3].flatten(2))
            of_camera = nn.functional.linear(camera, weight)
            of_camera = of_camera.unflatten(-1, (groups, levels * points)).transpose(1, 2)
            logits = logits.unflatten(-1, (groups, 1, levels * points))
            logits = (logits + full_precision(of_camera).unsqueeze(1)).flatten(-2)
        weights = logits.softmax(dim=-1)  # (B, A, G, N * L * P)
        weights = weights.unflatten(-1, (-1, levels, points))
        if self.training and self.dropout > 0:
            batch, count, _, cameras = weights.shape[:4]
            draw = torch.rand(batch, count, 1, cameras, 1, points, device=weights.device)
            weights = weights * (draw > self.dropout) / (1 - self.dropout)
        return weights.permute(0, 1, 5, 3, 4, 2).contiguous()
