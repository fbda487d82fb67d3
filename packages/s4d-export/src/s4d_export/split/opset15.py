"""Opset 20 to opset 15, for parsers of the TensorRT 8 era: the operators of this model only."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..errors import GraphError

__all__ = ["to_opset15"]

# Operators whose use here means the same in opset 15.
SAME = {
    *("Abs", "Add", "And", "ArgMax", "Cast", "Clip", "Concat", "Conv", "Cos", "Div", "Equal"),
    *("Exp", "Expand", "Flatten", "Gather", "GatherElements", "Gemm", "Greater", "Identity"),
    *("Less", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "Or", "Pad", "Pow"),
    *("Reciprocal", "Relu", "Reshape", "Sigmoid", "Sin", "Slice", "Softmax", "Sqrt", "Squeeze"),
    *("Sub", "Tanh", "TopK", "Transpose", "Unsqueeze", "Where", "GlobalAveragePool", "HardSigmoid"),
}
# Attributes that later opsets added; only their default values can be dropped.
ADDED: dict[str, dict[str, Any]] = {
    "Cast": {"saturate": 1},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch", "axes": None},
    "Reshape": {},
}
REDUCE = {"ReduceMax", "ReduceMean", "ReduceMin"}


def to_opset15(model: onnx.ModelProto) -> None:
    """Rewrite a graph in place.

    LayerNormalization becomes elementary operators, axes of reductions become attributes.

    Raises:
        GraphError: a node has no form in opset 15.
    """
    graph = model.graph
    constants = {value.name: value for value in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        if node.op_type == "LayerNormalization":
            nodes += _layer_norm(node, graph)
            continue
        if node.op_type in REDUCE:
            _axes_to_attribute(node, constants)
        elif node.domain in ("", "ai.onnx") and node.op_type not in SAME | {"Resize", "Split"}:
            raise GraphError(f"node {node.name!r} ({node.op_type}) has no form in opset 15")
        _drop_defaults(node)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [value for value in graph.initializer if value.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = 15
    model.ir_version = 8
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise GraphError(f"not a valid graph of opset 15: {str(error).splitlines()[0]}") from None


def _drop_defaults(node: onnx.NodeProto) -> None:
    added = dict(ADDED.get(node.op_type, {}))
    if node.op_type == "Split":
        added["num_outputs"] = len(node.output)
    for attribute in list(node.attribute):
        if attribute.name not in added:
            continue
        if helper.get_attribute_value(attribute) != added[attribute.name]:
            raise GraphError(f"{attribute.name} of node {node.name!r} has no form in opset 15")
        node.attribute.remove(attribute)


def _axes_to_attribute(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    if len(node.input) < 2 or not node.input[1]:
        return
    if node.input[1] not in constants:
        raise GraphError(f"the axes of node {node.name!r} are not constant")
    axes = numpy_helper.to_array(constants[node.input[1]]).ravel().tolist()
    del node.input[1:]
    kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("axes", axes)])


def _layer_norm(node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("axis", -1) != -1:
        raise GraphError(f"node {node.name!r} normalises over more than the last axis")
    name = node.name
    epsilon = f"{name}.epsilon"
    value = np.array(attributes.get("epsilon", 1e-5), np.float32)
    graph.initializer.append(numpy_helper.from_array(value, epsilon))
    steps = [
        ("ReduceMean", [node.input[0]], "mean"),
        ("Sub", [node.input[0], f"{name}.mean"], "centred"),
        ("Mul", [f"{name}.centred", f"{name}.centred"], "square"),
        ("ReduceMean", [f"{name}.square"], "variance"),
        ("Add", [f"{name}.variance", epsilon], "shifted"),
        ("Sqrt", [f"{name}.shifted"], "deviation"),
        ("Div", [f"{name}.centred", f"{name}.deviation"], "normal"),
        ("Mul", [f"{name}.normal", node.input[1]], "scaled"),
    ]
    with_bias = len(node.input) > 2 and bool(node.input[2])
    if with_bias:
        steps.append(("Add", [f"{name}.scaled", node.input[2]], "result"))
    nodes = []
    for number, (op, inputs, suffix) in enumerate(steps):
        last = number == len(steps) - 1
        output = node.output[0] if last else f"{name}.{suffix}"
        extra: dict[str, Any] = {"axes": [-1], "keepdims": 1} if op == "ReduceMean" else {}
        nodes.append(helper.make_node(op, inputs, [output], f"{name}.{suffix}/{op}", **extra))
    return nodes
