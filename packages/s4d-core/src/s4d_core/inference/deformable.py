"""Deformable convolutions in a traced graph: reading at moved taps, then one matrix product.

`torch.export` would see their positions as thousands of values of a type of its own. So the whole
convolution is traced as one opaque step, which is then taken apart into what runs fast: columns
with channels last, and a linear layer with the BatchNorm that follows folded in.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, fx, nn

from ..backbones.deform_conv import DeformConv2d, deform_conv2d, read_columns, tap_positions
from .graph_edit import call, constant, fold_norm, is_fixed_norm, value_of

__all__ = ["deformable_steps", "moved_columns", "split_deformable"]

_TAPS = 9


@torch.library.custom_op("s4d_core::deformable_step", mutates_args=())
def _step(x: Tensor, moves: Tensor, weight: Tensor, stride: int) -> Tensor:
    return deform_conv2d(x, moves[:, : 2 * _TAPS], moves[:, 2 * _TAPS :].sigmoid(), weight, stride)


@_step.register_fake
def _(x: Tensor, moves: Tensor, weight: Tensor, stride: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *moves.shape[-2:])


@contextmanager
def deformable_steps(model: nn.Module) -> Iterator[None]:
    """Inside, deformable convolutions of the model are one step each to a tracer."""

    def forward(self: DeformConv2d, x: Tensor) -> Tensor:
        return _step(x, self.conv_offset(x), self.weight, self.stride)

    found = [m for m in model.modules() if isinstance(m, DeformConv2d)]
    for module in found:
        module.forward = MethodType(forward, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in found:
            del module.forward


def moved_columns(x: Tensor, moves: Tensor, stride: int) -> Tensor:
    """What the 3 x 3 taps of a deformable convolution read, times their masks.

    Args:
        x: (B, C, H, W).
        moves: (B, 27, H', W'): offsets (y, x) in pixels tap by tap, then logits of the masks.
        stride: H' = ceil(H / stride).

    Returns:
        (B, H', W', 9 * C), tap by tap, in the type of `x`. Positions are float32.
    """
    if x.is_cuda and _has_triton():
        from .fused_columns import fused_columns

        return fused_columns(x, moves, stride)
    rows, columns = moves.shape[-2:]
    wide = moves.float()
    y, x_pos = tap_positions(wide[:, : 2 * _TAPS], (3, 3), stride, 1)
    mask = wide[:, 2 * _TAPS :].sigmoid().flatten(1)
    read = read_columns(x.float(), y, x_pos, mask).unflatten(-1, (_TAPS, rows, columns))
    return read.permute(0, 3, 4, 2, 1).flatten(3).to(x.dtype)


def split_deformable(graph: fx.GraphModule) -> None:
    """Take the steps that `deformable_steps` left apart, in place."""
    for node in list(graph.graph.nodes):
        if node.target != torch.ops.s4d_core.deformable_step.default:
            continue
        x, moves, weight_node, stride = node.args
        weight = value_of(graph, weight_node)
        assert weight is not None
        bias: Tensor | None = None
        last = node
        after = next(iter(node.users)) if len(node.users) == 1 else node
        if is_fixed_norm(after):
            weight, bias = fold_norm(graph, after, weight, None)
            last = after
        flat = weight.permute(0, 2, 3, 1).flatten(1)
        with graph.graph.inserting_before(last):
            columns = graph.graph.call_function(moved_columns, (x, moves, stride))
        given = [columns, constant(graph, f"{node.name}_weight", flat, last)]
        if bias is not None:
            given.append(constant(graph, f"{node.name}_bias", bias, last))
        with graph.graph.inserting_before(last):
            rows = graph.graph.call_function(torch.ops.aten.linear.default, tuple(given))
        call(graph, last, torch.ops.aten.permute.default, (rows, [0, 3, 1, 2]))


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
