"""Backbone and neck as one graph of fused convolutions.

`torch.export` turns whatever backbone there is into a graph of plain operators; BatchNorm is
folded into the convolution before it, and bias, residual and ReLU join the convolution as one call
where cuDNN has a kernel for it. What matches no pattern stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..model import Sparse4D
from .deformable import deformable_steps, split_deformable
from .graph_edit import call, constant, drop_casts, fold_norm, is_fixed_norm, value_of

__all__ = ["ADD", "fused_convolution", "image_graph", "widen_input"]

_CONVOLUTION = torch.ops.aten.conv2d.default
_RELU = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)
ADD = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)
# Defaults of conv2d's arguments after the input: weight, bias, stride, padding, dilation, groups.
_DEFAULTS = (None, None, [1, 1], [0, 0], [1, 1], 1)


class _Pyramid(nn.Module):
    """Images (K, 3, H, W) to pyramid levels."""

    def __init__(self, model: Sparse4D) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model.neck(self.model.backbone(images)[self.model._used])


def fused_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """`relu(conv2d(x) + bias + residual)`, in one kernel on CUDA.

    Args:
        x, weight, bias, stride, padding, dilation, groups: as in `conv2d`.
        residual: of the output's shape, or None.
        relu: False leaves the last step out.
    """
    if x.is_cuda and relu:
        shape = (stride, padding, dilation, groups)
        if residual is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *shape)
        return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *shape)
    half = x.dtype == torch.float16
    pointwise = weight.shape[2:] == (1, 1) and stride == [1, 1] and padding == [0, 0]
    if (
        x.is_cuda
        and half
        and pointwise
        and groups == 1
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        # A matrix product, which adds the bias in the same kernel.
        rows = nn.functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
        out = rows.permute(0, 3, 1, 2)
    else:
        out = nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if residual is not None:
        out = out + residual
    return out.relu() if relu else out


def image_graph(model: Sparse4D, images: Tensor, fuse_relu: bool = True) -> fx.GraphModule:
    """Backbone and neck of a model in eval mode, with BatchNorm folded and convolutions fused.

    Args:
        model: float32, not in training mode.
        images: (K, 3, H, W) of the size that the graph will be used with, on the model's device.
        fuse_relu: False keeps ReLU and residual sums as steps of their own.

    Returns:
        a module from (K, 3, H, W) to a tuple of levels, with weights of its own.
    """
    with torch.no_grad(), deformable_steps(model):
        program = torch.export.export(_Pyramid(model), (images,), strict=False)
        exported = program.module(check_guards=False)
        # A module of its own: the exported one refuses inputs of other sizes.
        graph = fx.GraphModule(exported, exported.graph)  # type: ignore[arg-type]
        drop_casts(graph)
        split_deformable(graph)
        _fold_norms(graph)
        _fuse(graph, fuse_relu)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    graph.delete_all_unused_submodules()
    return graph


def widen_input(graph: fx.GraphModule, channels: int) -> bool:
    """Let the graph take images of more channels, which its first convolutions ignore.

    Half-precision kernels for three channels are slow, those for a multiple of 8 are not.

    Returns:
        False, with nothing changed, where other steps than convolutions look at the images.
    """
    images = next(node for node in graph.graph.nodes if node.op == "placeholder")
    first = list(images.users)
    if any(node.target is not fused_convolution or node.args[-1] != 1 for node in first):
        return False
    for node in first:
        weight = value_of(graph, node.args[1])
        assert weight is not None
        wider = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
        wider[:, : weight.shape[1]] = weight
        node.update_arg(1, constant(graph, f"{node.name}_wider", wider, node))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return True


def _arguments(node: fx.Node) -> list[Any]:
    """All arguments of a conv2d after its input."""
    given = list(node.args[1:])
    return [*given, *_DEFAULTS[len(given) :]]


def _fold_norms(graph: fx.GraphModule) -> None:
    """Replace convolution + BatchNorm (of recorded statistics) by a convolution with bias."""
    for norm in list(graph.graph.nodes):
        if not is_fixed_norm(norm):
            continue
        convolution = norm.args[0]
        if convolution.target != _CONVOLUTION or len(convolution.users) != 1:
            continue
        weight_node, bias_node, *rest = _arguments(convolution)
        weight, bias = value_of(graph, weight_node), value_of(graph, bias_node)
        assert weight is not None
        weight, bias = fold_norm(graph, norm, weight, bias)
        name = f"{convolution.name}_folded"
        arguments = [
            convolution.args[0],
            constant(graph, f"{name}_weight", weight, convolution),
            constant(graph, f"{name}_bias", bias, convolution),
            *rest,
        ]
        convolution.args = tuple(arguments)
        norm.replace_all_uses_with(convolution)
        graph.graph.erase_node(norm)


def _fuse(graph: fx.GraphModule, fuse_relu: bool) -> None:
    """Make every convolution a `fused_convolution`, with the sum and ReLU that follow it."""
    for node in list(graph.graph.nodes):
        if fuse_relu and node.target in _RELU:
            _fuse_relu(graph, node)
    for node in list(graph.graph.nodes):
        if node.target == _CONVOLUTION:
            _replace(graph, node, node, None, relu=False)


def _fuse_relu(graph: fx.GraphModule, relu: fx.Node) -> None:
    before = relu.args[0]
    assert isinstance(before, fx.Node)
    if len(before.users) != 1:
        return
    if before.target == _CONVOLUTION:
        _replace(graph, relu, before, None, relu=True)
        return
    if before.target not in ADD or before.kwargs or len(before.args) != 2:
        return
    for main, other in (before.args, before.args[::-1]):
        if not isinstance(main, fx.Node) or not isinstance(other, fx.Node):
            continue
        same = main.meta["val"].shape == other.meta["val"].shape
        if main.target == _CONVOLUTION and len(main.users) == 1 and same:
            _move_bias(graph, main, other)
            _replace(graph, relu, main, other, relu=True)
            return


def _move_bias(graph: fx.GraphModule, main: fx.Node, other: fx.Node) -> None:
    """Where the residual is a convolution too, one bias serves both."""
    if other.target != _CONVOLUTION or len(other.users) != 1:
        return
    _, bias_node, *rest = _arguments(other)
    main_weight, main_bias_node, *main_rest = _arguments(main)
    bias, main_bias = value_of(graph, bias_node), value_of(graph, main_bias_node)
    if bias is None or main_bias is None:
        return
    joined = constant(graph, f"{main.name}_joined_bias", bias + main_bias, main)
    main.args = (main.args[0], main_weight, joined, *main_rest)
    other.args = (other.args[0], other.args[1], None, *rest)


def _replace(
    graph: fx.GraphModule, last: fx.Node, convolution: fx.Node, residual: fx.Node | None, relu: bool
) -> None:
    """Put a fused convolution in the place of `last`."""
    weight, bias, *shape = _arguments(convolution)
    arguments = (convolution.args[0], weight, bias, residual, relu, *shape)
    call(graph, last, fused_convolution, arguments)
