"""Kernels of ours in the place of a traced graph's steps. They need Triton."""

from __future__ import annotations

import torch
from torch import fx

from .fusion import ADD, fused_convolution
from .graph_edit import call, constant, value_of

__all__ = ["fuse_map_steps", "split_convolutions", "split_tokens"]

_POOL = torch.ops.aten.max_pool2d.default
_UPSAMPLE = torch.ops.aten.upsample_nearest2d.vec
_LINEAR = torch.ops.aten.linear.default
_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def fuse_map_steps(graph: fx.GraphModule) -> None:
    """Put kernels of ours in the place of max pooling and of sums with upsampled maps.

    Needs Triton. The kernels themselves fall back to torch for maps without channels last.
    """
    from .fused_maps import add_upsampled, max_pool_3x3

    for node in list(graph.graph.nodes):
        if node.target == _POOL and node.args[1:] == ([3, 3], [2, 2], [1, 1]):
            call(graph, node, max_pool_3x3, (node.args[0],))
        if node.target not in ADD or node.kwargs or len(node.args) != 2:
            continue
        for fine, other in (node.args, node.args[::-1]):
            if isinstance(other, fx.Node) and other.target == _UPSAMPLE and len(other.users) == 1:
                call(graph, node, add_upsampled, (fine, other.args[0]))
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
        weight = value_of(graph, weight_node)
        assert weight is not None
        size = weight.shape[2]
        square = all(len(set(x)) == 1 for x in (weight.shape[2:], stride, padding))
        plain = groups == 1 and set(dilation) == {1} and square
        if not plain or not can_split(weight.shape[1], size):
            continue
        parts, finish = split_parts(weight, value_of(graph, bias_node))
        given = (
            image,
            constant(graph, f"{node.name}_parts", parts, node),
            constant(graph, f"{node.name}_finish", finish, node),
            *(residual, relu, size, stride[0], padding[0]),
        )
        call(graph, node, split_convolution, given)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def split_tokens(graph: fx.GraphModule) -> None:
    """Make float32 linear layers and attention over all keys sums of three products. Needs Triton.

    What transformers are made of; the linear layers of deformable convolutions, too.
    """
    from .split_attention import can_attend, split_heads
    from .split_products import can_split, split_linear, split_parts

    for node in list(graph.graph.nodes):
        if node.target == _LINEAR and node.args[1].op == "get_attr":
            weight = value_of(graph, node.args[1])
            assert weight is not None
            if not can_split(weight.shape[1], 1):
                continue
            bias = value_of(graph, node.args[2]) if len(node.args) > 2 else None
            parts, finish = split_parts(weight, bias)
            given = (
                constant(graph, f"{node.name}_parts", parts, node),
                constant(graph, f"{node.name}_finish", finish, node),
            )
            call(graph, node, split_linear, (node.args[0], *given))
        elif node.target == _ATTENTION and len(node.args) == 3 and not node.kwargs:
            heads, width = node.args[0].meta["val"].shape[1::2]
            if can_attend(heads * width, heads, None):
                call(graph, node, split_heads, node.args)
    graph.graph.eliminate_dead_code()
    graph.recompile()
