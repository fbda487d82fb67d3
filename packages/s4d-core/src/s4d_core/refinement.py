"""Instance features to boxes, classes and quality."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .box import BOX_DIMS, VELOCITY
from .layers import Scale, full_precision, mlp_blocks, no_autocast

__all__ = ["Refinement"]

CLASS_PRIOR = 0.01


class Refinement(nn.Module):
    """Adds a correction to each box and scores it (REFERENCE B5.6).

    Args:
        embed_dims: C.
        num_classes: class logits per instance.
        refine_yaw: True: (sin, cos) are corrections too; False: absolute (REFERENCE 0.4).
        quality: predict centerness and yawness.
    """

    def __init__(
        self, embed_dims: int, num_classes: int, refine_yaw: bool, quality: bool = True
    ) -> None:
        super().__init__()
        self.num_kept = 8 if refine_yaw else 6  # columns to which the old value is added
        self.box_blocks = mlp_blocks(embed_dims, embed_dims, blocks=2, linears=2)
        self.box_output = nn.Linear(embed_dims, BOX_DIMS)
        self.box_scale = Scale(BOX_DIMS)
        self.cls_blocks = mlp_blocks(embed_dims, embed_dims, blocks=2)
        self.cls_output = nn.Linear(embed_dims, num_classes)
        self.quality_blocks = mlp_blocks(embed_dims, embed_dims, blocks=2) if quality else None
        self.quality_output = nn.Linear(embed_dims, 2) if quality else None
        nn.init.constant_(self.cls_output.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))

    def forward(self, feature: Tensor, box: Tensor, embed: Tensor, interval: Tensor) -> Tensor:
        """Corrected boxes.

        Args:
            feature, box, embed: (B, A, C), (B, A, 11), (B, A, C).
            interval: (B,) seconds since the previous frame, never 0: velocity is the network's
                displacement divided by it, plus the old velocity.

        Returns:
            (B, A, 11).
        """
        hidden = self.box_blocks(feature + embed)
        with no_autocast(hidden):
            step = self.box_scale(self.box_output(full_precision(hidden)))
            velocity = step[..., VELOCITY] / interval[:, None, None] + box[..., VELOCITY]
            kept = step[..., : self.num_kept] + box[..., : self.num_kept]
            return torch.cat([kept, step[..., self.num_kept : 8], velocity], dim=-1)

    def scores(self, feature: Tensor, embed: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class logits (B, A, classes); quality logits (B, A, 2): centerness, yawness; or None."""
        cls = full_precision(self.cls_output(self.cls_blocks(feature)))
        if self.quality_blocks is None or self.quality_output is None:
            return cls, None
        quality = self.quality_output(self.quality_blocks(feature + embed))
        return cls, full_precision(quality)
