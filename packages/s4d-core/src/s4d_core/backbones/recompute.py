"""Gradient checkpointing that leaves BatchNorm's running statistics right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]


def recomputed(block: nn.Module, x: Tensor, *constants: Any) -> Tensor:
    """`block(x, *constants)`, recomputed in backward, with statistics updated once."""
    if torch.compiler.is_compiling():
        # The compiler recomputes values, not the updates of buffers, and takes no context.
        return checkpoint(block, x, *constants, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _statistics_untouched(block)

    context_fn: Callable = contexts
    return checkpoint(block, x, *constants, use_reentrant=False, context_fn=context_fn)


@contextmanager
def _statistics_untouched(block: nn.Module) -> Iterator[None]:
    """BatchNorm of `block` normalises as usual but leaves its running statistics alone.

    Recomputing a block would otherwise count its batch a second time. Momentum 0 writes back the
    old values, and keeps the same tensors saved for backward as the first pass did.
    """
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    saved = [(m.momentum, m.num_batches_tracked) for m in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked = None
        yield
    finally:
        for norm, (momentum, count) in zip(norms, saved, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = count
