"""Feature pyramid (Lin et al., 2017): coarse maps are added to finer ones, then smoothed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate

__all__ = ["FPN"]


class FPN(nn.Module):
    """Maps of different widths to as many maps of one width, and `extra` coarser ones.

    An extra map is a convolution of stride 2 on the output before it.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, extra: int = 0) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in in_channels)
        strides = [1] * len(in_channels) + [2] * extra
        self.output = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, stride, padding=1) for stride in strides
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps fine to coarse, (K, C_i, H_i, W_i), to (K, out_channels, H_i, W_i) and the extra."""
        lateral = [conv(x) for conv, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(lateral) - 1, 0, -1):
            finer = lateral[i - 1]
            lateral[i - 1] = finer + interpolate(lateral[i], size=finer.shape[-2:], mode="nearest")
        outputs: list[Tensor] = []
        for i, conv in enumerate(self.output):
            outputs.append(conv(lateral[i] if i < len(lateral) else outputs[-1]))
        return outputs

    def init_weights(self) -> None:
        """Xavier initialisation, zero bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
