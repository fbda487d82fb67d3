"""Gradients averaged over the ranks in one message, after the backward pass.

DistributedDataParallel sends gradients while the backward pass runs, through hooks that a recorded
pass does not have. A replayed backward pass gives all gradients at once, so nothing is lost by
sending them together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


@torch.no_grad()
def same_start(module: nn.Module) -> None:
    """Gives every rank the first one's parameters and buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        whole = tensor.detach().contiguous()
        dist.broadcast(whole, 0)
        tensor.copy_(whole)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the ranks; a missing one counts as zero.

    Args:
        parameters: those that are trained, in the same order on every rank.
    """
    gradients: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(
        gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)]
    )
