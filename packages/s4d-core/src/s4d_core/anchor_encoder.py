"""Box states to embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .box import POSITION, SIZE, VELOCITY, YAW
from .config import AnchorEncoderConfig
from .layers import full_precision, mlp_blocks, no_autocast

__all__ = ["AnchorEncoder"]


class AnchorEncoder(nn.Module):
    """Four branches (position, size, yaw, velocity), joined or summed (REFERENCE B5.2, C3)."""

    def __init__(self, config: AnchorEncoderConfig, embed_dims: int) -> None:
        super().__init__()
        self.mode = config.mode
        position, size, yaw, velocity = config.dims
        self.position = mlp_blocks(3, position, config.blocks)
        self.size = mlp_blocks(3, size, config.blocks)
        self.yaw = mlp_blocks(2, yaw, config.blocks)
        self.velocity = mlp_blocks(3, velocity, config.blocks)
        self.output = mlp_blocks(embed_dims, embed_dims, 2) if config.output_layer else None

    def forward(self, box: Tensor) -> Tensor:
        """(B, A, 11) to (B, A, embed_dims), computed outside autocast.

        Metres to tens of metres with centimetres that matter do not fit half types.
        """
        with no_autocast(box):
            box = full_precision(box)
            parts = [
                self.position(box[..., POSITION]),
                self.size(box[..., SIZE]),
                self.yaw(box[..., YAW]),
                self.velocity(box[..., VELOCITY]),
            ]
            if self.mode == "cat":
                joined = torch.cat(parts, dim=-1)
            else:
                joined = parts[0] + parts[1] + parts[2] + parts[3]
            return joined if self.output is None else self.output(joined)
