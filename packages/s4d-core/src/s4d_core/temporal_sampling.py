"""Feature maps of several frames: which ones, how they are reached, how they are combined.

Sparse4D v1 samples the maps of past frames at the places where a box was then (REFERENCE C4 to
C6); the offline model does the same with frames to come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .aggregation_op import FeatureMaps
from .box import project_boxes
from .config import DepthReweightConfig, QueueConfig
from .ffn import FFN
from .layers import full_precision, no_autocast

__all__ = ["DepthReweight", "LinearFusion", "Other", "Scene", "View"]


class View(NamedTuple):
    """What the cameras saw in one frame.

    Attributes:
        maps: pyramid features of all cameras.
        lidar2img: (B, N, 4, 4), the frame's own LiDAR frame to pixels of the network input.
    """

    maps: FeatureMaps
    lidar2img: Tensor


@dataclass(frozen=True)
class Other:
    """A frame beside the current one.

    Attributes:
        view: its features.
        from_current: (B, 4, 4), current LiDAR frame to its own.
        interval: (B,) seconds from it to the current frame; negative for a frame to come.
        filled: (B,) bool; False: the sample has no such frame, its values are not looked at.
    """

    view: View
    from_current: Tensor
    interval: Tensor
    filled: Tensor

    def boxes(self, box: Tensor, legacy_yaw_order: bool) -> Tensor:
        """Boxes (B, A, 11) of the current frame as they were in this one."""
        return project_boxes(box, self.from_current, -self.interval, legacy_yaw_order)

    def points(self, points: Tensor, velocity: Tensor) -> Tensor:
        """Points (B, A, P, 3) that move with (B, A, 3) m/s, as they were in this frame."""
        m = self.from_current[:, None, None]
        moved = points - velocity[:, :, None] * self.interval[:, None, None, None]
        x, y, z = moved.unbind(-1)
        return torch.stack(
            [
                m[..., i, 0] * x + m[..., i, 1] * y + m[..., i, 2] * z + m[..., i, 3]
                for i in range(3)
            ],
            dim=-1,
        )


class Scene(NamedTuple):
    """All that the instances of a frame can look at.

    Attributes:
        view: the current frame.
        image_wh: (B, N, 2) width and height of the network input.
        others: frames beside the current one, the farthest first, each with the boxes (B, A, 11)
            and their embeddings (B, A, C) in that frame.
        reweight: weighs point features by distance; None: no such weights.
    """

    view: View
    image_wh: Tensor
    others: Sequence[tuple[Other, Tensor, Tensor]] = ()
    reweight: DepthReweight | None = None


class LinearFusion(nn.Module):
    """Point features of all frames, from the farthest to the current one, folded one by one.

    The farthest enters as it is. Each later one is weighted by decay ** (rate |dt|) and joined by
    one linear layer. Without other frames the current one is joined with zeros.
    """

    def __init__(self, config: QueueConfig, dims: int) -> None:
        super().__init__()
        self.decay, self.rate = config.decay, config.rate
        self.linear = nn.Linear(2 * dims, dims)

    def forward(self, others: list[tuple[Other, Tensor]], current: Tensor) -> Tensor:
        """Fold.

        Args:
            others: frames with their point features (B, A, P, C), the farthest first. Where a
                frame is filled, so are all that are nearer.
            current: (B, A, P, C).

        Returns:
            (B, A, P, C).
        """
        fused = torch.zeros_like(current)
        started = None  # (B, 1, 1, 1): something has been folded in
        for other, feature in others:
            filled = other.filled[:, None, None, None]
            value = feature
            if started is not None:
                weight = self.decay ** (other.interval * self.rate).abs()
                weight = weight.to(feature.dtype)[:, None, None, None]
                value = torch.where(started, self._join(fused, feature * weight), feature)
            fused = torch.where(filled, value, fused)
            started = filled if started is None else started | filled
        return self._join(fused, current)

    def _join(self, before: Tensor, after: Tensor) -> Tensor:
        return self.linear(torch.cat([before, after], dim=-1))


class DepthReweight(nn.Module):
    """Point features times the confidence that they lie at their box's distance.

    The features are classified into bins of distance. The confidence is the probability of the
    two bins around the distance, weighted linearly, divided by the sum of squared weights, and
    may exceed 1. Distance is measured on the ground from the LiDAR of the sampled frame.
    """

    bins: Tensor

    def __init__(self, config: DepthReweightConfig, dims: int) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(FFN(dims, dims, 0.0) for _ in range(config.blocks))
        self.output = nn.Linear(dims, config.num_bins)
        # On the CPU even where weights are made without values: these are constants.
        bins = config.min_depth + config.interval * torch.arange(config.num_bins, device="cpu")
        self.register_buffer("bins", bins, persistent=False)

    def forward(self, feature: Tensor, box: Tensor) -> Tensor:
        """(B, A, P, C) weighted; `box` (B, A, 11) in the sampled frame."""
        return feature * self.confidence(feature, box).to(feature.dtype)

    def confidence(self, feature: Tensor, box: Tensor) -> Tensor:
        """(B, A, P, 1) for point features (B, A, P, C)."""
        config = self.config
        with no_autocast(feature):
            distance = torch.linalg.vector_norm(box[..., :2], dim=-1)[:, :, None, None]
            # Never on the first or last bin: there are always two bins with weight.
            distance = distance.clamp(config.min_depth + 1e-5, self._last() - 1e-5)
            weight = (1 - (distance - self.bins).abs() / config.interval).clamp(min=0)
            scale = weight.square().sum(dim=-1, keepdim=True)
        hidden = feature
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.output(hidden)
        with no_autocast(feature):
            share = full_precision(logits).softmax(dim=-1)
            return (weight * share).sum(dim=-1, keepdim=True) / scale

    def _last(self) -> float:
        return self.config.min_depth + self.config.interval * (self.config.num_bins - 1)
