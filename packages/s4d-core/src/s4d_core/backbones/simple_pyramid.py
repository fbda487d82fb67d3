"""The simple feature pyramid of ViTDet (Li et al., 2022): four scales from one map."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import layer_norm

__all__ = ["SimplePyramid"]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (K, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class SimplePyramid(nn.Module):
    """(K, C, H, W) to maps of 4, 2, 1 and 1/2 times its size, `out_channels` each."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        scales: list[tuple[list[nn.Module], int]] = [
            (
                [
                    nn.ConvTranspose2d(channels, half, 2, 2),
                    ChannelNorm(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, 2),
                ],
                quarter,
            ),
            ([nn.ConvTranspose2d(channels, half, 2, 2)], half),
            ([], channels),
            ([nn.MaxPool2d(2, 2)], channels),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                *resize,
                nn.Conv2d(width, out_channels, 1, bias=False),
                ChannelNorm(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                ChannelNorm(out_channels),
            )
            for resize, width in scales
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps fine to coarse."""
        return [level(x) for level in self.levels]
