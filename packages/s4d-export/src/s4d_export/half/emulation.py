"""A half-precision graph in float32, every float16 tensor rounded: what float16 does, exactly.

ONNX Runtime has no float16 kernels for most operators on the CPU: it computes chains of them in
float32 and rounds at their ends, so an overflow inside a chain stays unseen. Here each node's
result is rounded. The inside of a node stays float32, as it does in cuBLAS, cuDNN and TensorRT.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from ..graph.surgery import tensor_types
from .conversion import MOVES

__all__ = ["emulate_half", "half_tensors"]

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT


def half_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of all float16 tensors of a graph, constants included."""
    types = tensor_types(model)
    return {name for name, kind in types.items() if kind.tensor_type.elem_type == HALF}


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 twin of a graph with float16 parts; tensor names stay.

    Run it without optimisations: they would remove the pairs of casts that round.
    """
    half = half_tensors(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        target = {a.name: a.i for a in node.attribute}.get("to") if node.op_type == "Cast" else None
        if target == FULL and node.input[0] in half:
            nodes.append(helper.make_node("Identity", node.input, node.output, node.name))
            continue
        rounded = [name for name in node.output if name in half]
        if target == HALF:
            nodes += _rounding(node.input[0], node.output[0])
            continue
        nodes.append(node)
        if node.op_type not in MOVES:  # what only moves values has nothing to round
            for name in rounded:
                node.output[list(node.output).index(name)] = f"{name}.exact"
                nodes += _rounding(f"{name}.exact", name)
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.initializer:
        if value.data_type == HALF:
            array = numpy_helper.to_array(value).astype("float32")
            value.CopyFrom(numpy_helper.from_array(array, value.name))
    del graph.value_info[:]
    return result


def _rounding(source: str, target: str) -> list[onnx.NodeProto]:
    middle = f"{target}.rounded"
    return [
        helper.make_node("Cast", [source], [middle], f"{middle}/Cast", to=HALF),
        helper.make_node("Cast", [middle], [target], f"{target}/Cast.back", to=FULL),
    ]
