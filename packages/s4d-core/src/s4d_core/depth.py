"""Dense depth per camera: an auxiliary training target that teaches the features distance."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .layers import full_precision, no_autocast

__all__ = ["DepthBranch"]


class DepthBranch(nn.Module):
    """One 1x1 convolution per level; depth = exp(output) * focal / reference focal."""

    def __init__(self, in_channels: int, num_levels: int, reference_focal: float) -> None:
        super().__init__()
        self.reference_focal = reference_focal
        self.convs = nn.ModuleList(nn.Conv2d(in_channels, 1, 1) for _ in range(num_levels))

    def forward(self, maps: Sequence[Tensor], focal: Tensor | None = None) -> list[Tensor]:
        """Depth in metres.

        Args:
            maps: pyramid levels, (B * N, C, H_l, W_l), fine to coarse; the first `num_levels`
                are used.
            focal: (B, N) focal lengths in pixels of the network input; None: the reference focal.

        Returns:
            per level (B * N, 1, H_l, W_l), float32 or float64.
        """
        depths = []
        for conv, level in zip(self.convs, maps, strict=False):
            with no_autocast(level):
                depth = conv(full_precision(level)).exp()
                if focal is not None:
                    scale = focal.to(depth.dtype).reshape(-1, 1, 1, 1)
                    depth = depth * scale / self.reference_focal
            depths.append(depth)
        return depths
