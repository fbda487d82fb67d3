"""Fused operators written out in ONNX's own ones, so that a rewritten graph runs anywhere."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from s4d_runtime.backends.fused_chains import DOMAIN


def chain_nodes(node: onnx.NodeProto, parameters: np.ndarray) -> list[onnx.NodeProto]:
    """One ``DenseChains`` in ONNX's own operators, by the operator's own description."""
    nodes: list[onnx.NodeProto] = []
    a = {x.name: x for x in node.attribute}
    results: list[str] = []
    at = 0

    def take(*shape: int) -> str:
        nonlocal at
        size = int(np.prod(shape))
        name = f"{node.output[0]}.{at}"
        value = numpy_helper.from_array(parameters[at : at + size].reshape(shape), name)
        nodes.append(helper.make_node("Constant", [], [name], value=value))
        at += size
        return name

    def add(op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{node.output[0]}.{op}{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    for text in a["branches"].s.decode().split(";"):
        first, width, *layers = text.split()
        numbers = []
        for value in (int(first), int(first) + int(width), -1):
            name = f"{node.output[0]}.int{len(nodes)}"
            array = numpy_helper.from_array(np.array([value], np.int64), name)
            nodes.append(helper.make_node("Constant", [], [name], value=array))
            numbers.append(name)
        x, columns = add("Slice", [node.input[0], *numbers]), int(width)
        for layer in layers:
            out = int(layer.rstrip("rn"))
            x = add("MatMul", [x, take(columns, out)])
            x = add("Add", [x, take(out)])
            x = add("Relu", [x]) if "r" in layer else x
            if "n" in layer:
                epsilon = a["epsilon"].f
                x = add("LayerNormalization", [x, take(out), take(out)], epsilon=epsilon)
            columns = out
            at += -at % 4
        results.append(x)
    assert at == parameters.size and a["rank"].i in (0, 3)
    nodes.append(helper.make_node("Concat", results, [node.output[0]], axis=-1))
    return nodes


def unsplit(parts: np.ndarray) -> np.ndarray:
    """(rows, depth) float64 of `split_weight`'s first result."""
    halves = parts.view(np.float16).reshape(len(parts), -1, 2, 8).astype(np.float64)
    return halves.sum(axis=2).reshape(len(parts), -1)


def split_nodes(
    node: onnx.NodeProto,
    weights: dict[str, np.ndarray],
    split: set[str],
    channels: dict[str, int],
) -> list[onnx.NodeProto]:
    """A ``Split...`` operator in ONNX's own ones, on tensors that are not split.

    ``split`` collects the tensors that would be; who reads which is checked. ``channels`` of
    tensors: the pictures have 3.
    """
    a = {x.name: x.i for x in node.attribute}
    o = node.output[0]
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    if node.op_type == "SplitValues":
        assert node.input[0] not in split
        split.add(o)
        channels[o] = -(-channels.get(node.input[0], 3) // 8) * 8
        # Zeros up to a multiple of 8 channels: size -c mod 8 after the last one.
        for i, value in enumerate(([8], [0], [0] * 7)):
            tensor = numpy_helper.from_array(np.array(value, np.int64), f"{o}.{i}")
            add("Constant", [], f"{o}.{i}", value=tensor)
        three = numpy_helper.from_array(np.array([3], np.int64), f"{o}.3")
        add("Constant", [], f"{o}.3", value=three)
        size = add("Gather", [add("Shape", [node.input[0]], f"{o}.size"), f"{o}.3"], f"{o}.c")
        more = add("Mod", [add("Neg", [size], f"{o}.n"), f"{o}.0"], f"{o}.more")
        pads = add("Concat", [f"{o}.2", more], f"{o}.pads", axis=0)
        add("Pad", [node.input[0], pads], o)
        return nodes
    if node.op_type == "SplitLinear":
        assert node.input[0] not in split
        finish = weights[node.input[2]].astype(np.float64)
        weight = (unsplit(weights[node.input[1]]) * finish[1][:, None]).T
        nonzero = np.flatnonzero(weight.any(axis=1))
        inner = -(-(nonzero[-1] + 1) // 8) * 8
        for name, array in (("w", weight[:inner]), ("b", finish[0])):
            tensor = numpy_helper.from_array(array.astype(np.float32), f"{o}.{name}")
            add("Constant", [], f"{o}.{name}", value=tensor)
        x = add("MatMul", [node.input[0], f"{o}.w"], f"{o}.m")
        x = add("Add", [x, f"{o}.b"], f"{o}.a")
        add("Relu" if a["relu"] else "Identity", [x], o)
        return nodes
    assert node.input[0] in split
    if a["split"]:
        split.add(o)
    window, strides = [a["kernel_h"], a["kernel_w"]], [a["stride_h"], a["stride_w"]]
    pads = [a["pad_h"], a["pad_w"]] * 2
    x = add("Transpose", [node.input[0]], f"{o}.x", perm=[0, 3, 1, 2])
    if node.op_type == "SplitMaxPool":
        x = add("MaxPool", [x], f"{o}.c", kernel_shape=window, strides=strides, pads=pads)
        add("Transpose", [x], o, perm=[0, 2, 3, 1])
        return nodes
    finish = weights[node.input[2]].astype(np.float64)
    rows = unsplit(weights[node.input[1]]) * finish[1][:, None]
    inner = channels[node.input[0]]
    used = rows[:, : inner * window[0] * window[1]]
    assert not rows[:, used.shape[1] :].any()
    weight = used.reshape(len(rows), *window, inner).transpose(0, 3, 1, 2)
    names = []
    for name, array in (("w", weight), ("b", finish[0])):
        tensor = numpy_helper.from_array(array.astype(np.float32), f"{o}.{name}")
        names.append(add("Constant", [], f"{o}.{name}", value=tensor))
    x = add("Conv", [x, *names], f"{o}.c", strides=strides, pads=pads)
    x = add("Transpose", [x], f"{o}.t", perm=[0, 2, 3, 1])
    if node.op_type == "SplitConvolutionAdd":
        assert a["split_residual"] == (node.input[3] in split)
        x = add("Add", [x, node.input[3]], f"{o}.s")
    add("Relu" if a["relu"] else "Identity", [x], o)
    return nodes


def plain(model: bytes) -> bytes:
    """The fused nodes written out in ONNX's own operators, to run anywhere."""
    proto = onnx.load_from_string(model)
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    split: set[str] = set()
    channels = {v.name: v.type.tensor_type.shape.dim[-1].dim_value for v in proto.graph.value_info}
    for node in proto.graph.node:
        if node.domain != DOMAIN:
            if split.intersection(node.input):
                assert node.op_type == "Resize"  # copies values as they are
                split.add(node.output[0])
            nodes.append(node)
            continue
        if node.op_type.startswith("Split"):
            nodes += split_nodes(node, weights, split, channels)
            continue
        if node.op_type == "DenseChains":
            nodes += chain_nodes(node, weights[node.input[1]])
            continue
        a = {x.name: x.i for x in node.attribute}
        o = node.output[0]
        for i in (0, 1):
            turned = [f"{o}.{i}"]
            nodes.append(helper.make_node("Transpose", [node.input[i]], turned, perm=[0, 3, 1, 2]))
        strides, pads = [a["stride_h"], a["stride_w"]], [a["pad_h"], a["pad_w"]] * 2
        inputs = [f"{o}.0", f"{o}.1", node.input[2]]
        nodes.append(helper.make_node("Conv", inputs, [f"{o}.c"], strides=strides, pads=pads))
        nodes.append(helper.make_node("Transpose", [f"{o}.c"], [f"{o}.t"], perm=[0, 2, 3, 1]))
        last = f"{o}.t"
        if node.op_type == "ConvolutionAdd":
            nodes.append(helper.make_node("Add", [last, node.input[3]], [f"{o}.s"]))
            last = f"{o}.s"
        nodes.append(helper.make_node("Relu" if a["relu"] else "Identity", [last], [o]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto.SerializeToString()
