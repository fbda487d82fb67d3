"""Small layers that several parts share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

__all__ = ["Scale", "full_precision", "mlp_blocks", "no_autocast"]


def full_precision(x: Tensor) -> Tensor:
    """float32 for half types; float32 and float64 stay what they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> AbstractContextManager:
    """A context in which autocast is off on the device of `x`: for geometry and box values.

    Where it is off already this does nothing, so exported graphs hold no trace of it.
    """
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def mlp_blocks(in_dims: int, dims: int, blocks: int, linears: int = 1) -> nn.Sequential:
    """`blocks` times [`linears` times (Linear, ReLU), LayerNorm], all of width `dims`."""
    layers: list[nn.Module] = []
    for _ in range(blocks):
        for _ in range(linears):
            layers += [nn.Linear(in_dims, dims), nn.ReLU()]
            in_dims = dims
        layers.append(nn.LayerNorm(dims))
    return nn.Sequential(*layers)


class Scale(nn.Module):
    """One learned factor per output column."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dims))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dims) times the factors."""
        return x * self.scale
