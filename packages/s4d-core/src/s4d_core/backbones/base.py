"""What the model asks of a backbone, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .recompute import recomputed

__all__ = ["Backbone"]

B = TypeVar("B", bound="Backbone")


class Backbone(nn.Module):
    """Images (K, 3, H, W) to one map (K, C_i, H_i, W_i) per output, fine to coarse.

    Channels and sizes are those of the configuration: `out_channels` and `level_sizes((H, W))`.

    Attributes:
        checkpointing: recompute blocks in backward instead of keeping their activations.
    """

    checkpointing = False

    def __init__(self) -> None:
        super().__init__()
        # Parts whose BatchNorm keeps its running statistics in training. A tuple, so that the
        # modules are not registered twice.
        self._fixed_norms: tuple[nn.Module, ...] = ()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of normalised images."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Fresh random weights, from torch's global generator."""
        raise NotImplementedError

    def make_tables(self, image_size: tuple[int, int]) -> None:
        """Constants for images of `image_size` as buffers, on the default device."""

    def run(self, block: nn.Module, x: Tensor, *constants: Any) -> Tensor:
        """`block(x, *constants)`, recomputed in backward where `checkpointing` says so."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return recomputed(block, x, *constants)
        return block(x, *constants)

    def fix(self, frozen: Iterable[nn.Module], norm_eval: bool) -> None:
        """Do not train `frozen`; keep running statistics there, with `norm_eval` everywhere."""
        parts = tuple(frozen)
        for part in parts:
            part.requires_grad_(False)
        self._fixed_norms = tuple(self.children()) if norm_eval else parts

    def train(self: B, mode: bool = True) -> B:
        super().train(mode)
        if mode:
            for part in self._fixed_norms:
                for module in part.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self
