"""A graph's float32 linear layers as split half-precision products, see `split_convolutions`.

MatMul by a constant, with the Add of a constant vector and the ReLU that follow, becomes
``s4d.fused::SplitLinear``. It reads plain float32 rows, which it splits on the way.
"""

from __future__ import annotations

import numpy as np

from .consumers import Consumers
from .fused_convolutions import ALIGN, DOMAIN
from .onnx_edit import EditableModel, Node
from .split_convolutions import split_weight

__all__ = ["split_linear_layers"]

NARROWEST = 32  # inputs and outputs: below, ONNX Runtime's own products are as fast


def split_linear_layers(graph: EditableModel) -> int:
    """Rewrite the graph in place; returns the number of layers."""
    consumers = Consumers(graph)
    constants = {"", *graph.initializers}  # what ONNX Runtime computes once, by itself
    absorbed: set[Node] = set()
    nodes: list[Node] = []
    count = 0

    for node in graph.nodes:
        if node in absorbed:
            continue
        if all(name in constants for name in node.inputs):
            constants.update(node.outputs)
        elif node.op_type == "MatMul" and node.domain == "" and node.inputs[0] not in constants:
            weight = graph.array(node.inputs[1])
            if weight is not None and weight.dtype == np.float32 and _fits(weight.shape):
                output, name = node.outputs[0], node.inputs[1]
                bias = np.zeros(weight.shape[1], np.float32)
                add = consumers.only(output, "Add")
                if add is not None:
                    other = next((x for x in add.inputs if x != output), "")
                    values = graph.array(other)
                    if values is not None and values.shape == bias.shape:
                        bias, name, output = values, f"{name},{other}", add.outputs[0]
                        absorbed.add(add)
                relu = consumers.only(output, "Relu")
                if relu is not None:
                    output = relu.outputs[0]
                    absorbed.add(relu)
                inputs = [node.inputs[0], f"{name}.parts", f"{name}.finish"]
                if inputs[1] not in graph.initializers:
                    parts, finish = split_weight(weight.T[:, None, None], bias)
                    graph.add(inputs[1], parts)
                    graph.add(inputs[2], finish)
                flags = {"relu": int(relu is not None)}
                node = Node("SplitLinear", inputs, [output], {**flags}, DOMAIN)
                count += 1
        nodes.append(node)
    graph.nodes = nodes
    return count


def _fits(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and min(shape) >= NARROWEST and shape[0] % ALIGN == 0 == shape[1] % ALIGN
