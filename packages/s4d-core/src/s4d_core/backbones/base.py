"""What the model asks of a backbone."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Backbone"]


class Backbone(nn.Module):
    """Images (K, 3, H, W) to one map (K, C_i, H_i, W_i) per output, fine to coarse.

    Channels and sizes are those of the configuration: `out_channels` and `level_sizes((H, W))`.
    """

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of normalised images."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Fresh random weights, from torch's global generator."""
        raise NotImplementedError
