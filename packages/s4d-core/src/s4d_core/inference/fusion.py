"""Backbone and neck as one graph of fused convolutions.

`torch.export` turns whatever backbone there is into a graph of plain operators; BatchNorm is
folded into the convolution before it, and bias, residual and ReLU join the convolution as one call
where cuDNN has a kernel for it. What matches no pattern stays as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..model import Sparse4D

__all__ = [
    "fuse_map_steps",
    "fused_convolution",
    "image_graph",
    "split_convolutions",
    "widen_input",
]

_CONVOLUTION = torch.ops.aten.conv2d.default
_NORM = torch.ops.aten.batch_norm.default
_RELU = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)
_POOL = torch.ops.aten.max_pool2d.default
_UPSAMPLE = torch.ops.aten.upsample_nearest2d.vec
_ADD = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)
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
    with torch.no_grad():
        program = torch.export.export(_Pyramid(model), (images,), strict=False)
        exported = program.module(check_guards=False)
        # A module of its own: the exported one refuses inputs of other sizes.
        graph = fx.GraphModule(exported, exported.graph)  # type: ignore[arg-type]
        _fold_norms(graph)
        _fuse(graph, fuse_relu)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    graph.delete_all_unused_submodules()
    return graph


def widen_input(graph: fx.GraphModule, channels: int) -> None:
    """Let the graph take images of more channels, which its first convolutions ignore.

    Half-precision kernels for three channels are slow, those for a multiple of 8 are not.
    """
    for node in graph.graph.nodes:
        if node.target is fused_convolution and node.args[0].op == "placeholder":
            weight = _value(graph, node.args[1])
            assert weight is not None
            wider = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
            wider[:, : weight.shape[1]] = weight
            args = list(node.args)
            args[1] = _constant(graph, f"{node.name}_wider", wider, node)
            node.args = tuple(args)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def fuse_map_steps(graph: fx.GraphModule) -> None:
    """Put kernels of ours in the place of max pooling and of sums with upsampled maps.

    Needs Triton. The kernels themselves fall back to torch for maps without channels last.
    """
    from .fused_maps import add_upsampled, max_pool_3x3

    for node in list(graph.graph.nodes):
        if node.target == _POOL and node.args[1:] == ([3, 3], [2, 2], [1, 1]):
            _call(graph, node, max_pool_3x3, (node.args[0],))
        if node.target not in _ADD or node.kwargs or len(node.args) != 2:
            continue
        for fine, other in (node.args, node.args[::-1]):
            if isinstance(other, fx.Node) and other.target == _UPSAMPLE and len(other.users) == 1:
                _call(graph, node, add_upsampled, (fine, other.args[0]))
                break
    graph.graph.eliminate_dead_code()
    graph.recompile()


def split_convolutions(graph: fx.GraphModule) -> None:
    """Make float32 convolutions sums of three products on tensor cores. Needs Triton.

    Those that the kernel does not take (groups, dilation, other numbers of channels) stay as they
    are.
    """
    from .split_products import can_split, split_convolution, split_parts

    for node in list(graph.graph.nodes):
        if node.target is not fused_convolution:
            continue
        image, weight_node, bias_node, residual, relu, stride, padding, dilation, groups = node.args
        weight = _value(graph, weight_node)
        assert weight is not None
        size = weight.shape[2]
        square = all(len(set(x)) == 1 for x in (weight.shape[2:], stride, padding))
        plain = groups == 1 and set(dilation) == {1} and square
        if not plain or not can_split(weight.shape[1], size):
            continue
        parts, finish = split_parts(weight, _value(graph, bias_node))
        given = (
            image,
            _constant(graph, f"{node.name}_parts", parts, node),
            _constant(graph, f"{node.name}_finish", finish, node),
            *(residual, relu, size, stride[0], padding[0]),
        )
        _call(graph, node, split_convolution, given)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _call(
    graph: fx.GraphModule, node: fx.Node, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """Put a call in the place of a node."""
    with graph.graph.inserting_before(node):
        new = graph.graph.call_function(function, args)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)


def _value(graph: fx.GraphModule, node: object) -> Tensor | None:
    """The parameter or buffer that a node stands for."""
    if node is None:
        return None
    assert isinstance(node, fx.Node) and node.op == "get_attr"
    value = operator.attrgetter(str(node.target))(graph)
    assert isinstance(value, Tensor)
    return value.detach()


def _constant(graph: fx.GraphModule, name: str, value: Tensor, before: fx.Node) -> fx.Node:
    """A new parameter, and the node that reads it."""
    graph.register_parameter(name, nn.Parameter(value.contiguous(), requires_grad=False))
    with graph.graph.inserting_before(before):
        return graph.graph.get_attr(name)


def _arguments(node: fx.Node) -> list[Any]:
    """All arguments of a conv2d after its input."""
    given = list(node.args[1:])
    return [*given, *_DEFAULTS[len(given) :]]


def _fold_norms(graph: fx.GraphModule) -> None:
    """Replace convolution + BatchNorm (of recorded statistics) by a convolution with bias."""
    for norm in list(graph.graph.nodes):
        if norm.target != _NORM or norm.args[5]:
            continue
        convolution = norm.args[0]
        if convolution.target != _CONVOLUTION or len(convolution.users) != 1:
            continue
        weight_node, bias_node, *rest = _arguments(convolution)
        weight, bias = _value(graph, weight_node), _value(graph, bias_node)
        gain, shift, mean, variance = (_value(graph, node) for node in norm.args[1:5])
        assert weight is not None and mean is not None and variance is not None
        # In float64: folding shall not be what a comparison with the model measures.
        scale = torch.rsqrt(variance.double() + norm.args[7])
        scale = scale if gain is None else scale * gain.double()
        new_bias = -mean.double() if bias is None else bias.double() - mean.double()
        new_bias = new_bias * scale
        new_bias = new_bias if shift is None else new_bias + shift.double()
        new_weight = weight.double() * scale[:, None, None, None]
        name = f"{convolution.name}_folded"
        arguments = [
            convolution.args[0],
            _constant(graph, f"{name}_weight", new_weight.to(weight.dtype), convolution),
            _constant(graph, f"{name}_bias", new_bias.to(weight.dtype), convolution),
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
    if before.target not in _ADD or before.kwargs or len(before.args) != 2:
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
    bias, main_bias = _value(graph, bias_node), _value(graph, main_bias_node)
    if bias is None or main_bias is None:
        return
    joined = _constant(graph, f"{main.name}_joined_bias", bias + main_bias, main)
    main.args = (main.args[0], main_weight, joined, *main_rest)
    other.args = (other.args[0], other.args[1], None, *rest)


def _replace(
    graph: fx.GraphModule, last: fx.Node, convolution: fx.Node, residual: fx.Node | None, relu: bool
) -> None:
    """Put a fused convolution in the place of `last`."""
    weight, bias, *shape = _arguments(convolution)
    arguments = (convolution.args[0], weight, bias, residual, relu, *shape)
    _call(graph, last, fused_convolution, arguments)
