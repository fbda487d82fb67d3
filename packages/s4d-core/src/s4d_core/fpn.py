"""Feature pyramid (Lin et al., 2017): coarse maps are added to finer ones, then smoothed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate

__all__ = ["FPN"]


class FPN(nn.Module):
    """Maps of different widths to as many maps of one width."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in in_channels)
        self.output = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps fine to coarse, (K, C_i, H_i, W_i), to (K, out_channels, H_i, W_i)."""
        lateral = [conv(x) for conv, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(lateral) - 1, 0, -1):
            finer = lateral[i - 1]
            lateral[i - 1] = finer + interpolate(lateral[i], size=finer.shape[-2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.output, lateral, strict=True)]

    def init_weights(self) -> None:
        """Xavier initialisation, zero bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
