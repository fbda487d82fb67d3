"""Multiply-adds of a graph's convolutions and matrix products, from the inferred shapes."""

from __future__ import annotations

import math
from collections import Counter

import onnx

from .graph.naming import module_of

__all__ = ["count_flops", "tensor_shapes"]


def tensor_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a model with inferred shapes; unknown sizes count as 0."""
    shapes = {value.name: tuple(value.dims) for value in model.graph.initializer}
    for info in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        dims = info.type.tensor_type.shape.dim
        shapes.setdefault(info.name, tuple(dim.dim_value for dim in dims))
    return shapes


def count_flops(model: onnx.ModelProto, depth: int = 2) -> dict[str, int]:
    """FLOPs (2 per multiply-add) of Conv, MatMul and Gemm nodes, summed per module.

    Args:
        model: with inferred shapes.
        depth: how many components of the module path to keep.
    """
    shapes = tensor_shapes(model)
    total: Counter[str] = Counter()
    for node in model.graph.node:
        flops = _node_flops(node, shapes)
        if flops:
            total[".".join(module_of(node.name).split(".")[:depth])] += flops
    return dict(total.most_common())


def _node_flops(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "MatMul", "Gemm"):
        return 0
    a, b = (shapes.get(name, ()) for name in node.input[:2])
    result = shapes.get(node.output[0], ())
    if node.op_type == "Conv":
        return 2 * math.prod(result) * math.prod(b[1:])
    if node.op_type == "MatMul":
        return 2 * math.prod(result) * (a[-1] if a else 0)
    transposed = any(item.name == "transA" and item.i for item in node.attribute)
    return 2 * math.prod(result) * (a[0] if transposed else a[-1])
