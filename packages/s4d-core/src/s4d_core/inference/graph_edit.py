"""Small edits of a traced graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["call", "constant", "drop_casts", "fold_norm", "is_fixed_norm", "value_of"]

_CASTS = (torch.ops.aten.to.dtype, torch.ops.aten.to.dtype_layout, torch.ops.aten._to_copy.default)
_NORM = torch.ops.aten.batch_norm.default
_CHECK = torch.ops.aten._assert_tensor_metadata.default


def call(
    graph: fx.GraphModule, node: fx.Node, function: Callable[..., Any], args: tuple[Any, ...]
) -> fx.Node:
    """Put a call in the place of a node; returns the call's."""
    with graph.graph.inserting_before(node):
        new = graph.graph.call_function(function, args)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)
    return new


def value_of(graph: fx.GraphModule, node: object) -> Tensor | None:
    """The parameter or buffer that a node stands for."""
    if node is None:
        return None
    assert isinstance(node, fx.Node) and node.op == "get_attr"
    value = operator.attrgetter(str(node.target))(graph)
    assert isinstance(value, Tensor)
    return value.detach()


def constant(graph: fx.GraphModule, name: str, value: Tensor, before: fx.Node) -> fx.Node:
    """A new parameter, and the node that reads it."""
    graph.register_parameter(name, nn.Parameter(value.contiguous(), requires_grad=False))
    with graph.graph.inserting_before(before):
        return graph.graph.get_attr(name)


def drop_casts(graph: fx.GraphModule) -> None:
    """Remove casts to the type that a value has in the traced graph, and checks of that type.

    They follow other tensors ("the type of the weights"), but a trace holds the type itself, which
    would be wrong once the graph computes in another one.
    """
    for node in list(graph.graph.nodes):
        if node.target == _CHECK:
            graph.graph.erase_node(node)
        elif node.target in _CASTS:
            before = node.args[0]
            if before.meta["val"].dtype == node.meta["val"].dtype:
                node.replace_all_uses_with(before)
                graph.graph.erase_node(node)


def is_fixed_norm(node: fx.Node) -> bool:
    """Whether a node is a BatchNorm of recorded statistics."""
    return node.target == _NORM and not node.args[5]


def fold_norm(
    graph: fx.GraphModule, norm: fx.Node, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weight (O, C, h, w) and bias of a convolution with the BatchNorm that follows folded in."""
    gain, shift, mean, variance = (value_of(graph, node) for node in norm.args[1:5])
    assert mean is not None and variance is not None
    epsilon = norm.args[7]
    assert isinstance(epsilon, float)
    # In float64: folding shall not be what a comparison with the model measures.
    scale = torch.rsqrt(variance.double() + epsilon)
    scale = scale if gain is None else scale * gain.double()
    new_bias = -mean.double() if bias is None else bias.double() - mean.double()
    new_bias = new_bias * scale
    new_bias = new_bias if shift is None else new_bias + shift.double()
    new_weight = weight.double() * scale[:, None, None, None]
    return new_weight.to(weight.dtype), new_bias.to(weight.dtype)
