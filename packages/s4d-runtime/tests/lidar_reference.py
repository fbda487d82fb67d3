"""A float64 reading of the graph and of the int8 conventions."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from golden_lidar import golden_file

from s4d_ops import sparse
from s4d_runtime.lidar.graph import build_graph
from s4d_runtime.lidar.nodes import AddNode, ConvNode, ReluNode, ReshapeNode
from s4d_runtime.lidar.onnx_file import OnnxGraph, read_onnx


def example_path() -> Path:
    return golden_file("example_scn_small_fp16.onnx")


def fake_quant(x, amax):
    return np.clip(np.rint(x * (127.0 / amax)), -127, 127) * (amax / 127.0)


def gather_convolution(x, weight, table):
    """Plain sum over the offsets, float64."""
    out = np.zeros((table.shape[1], len(weight)))
    flat = weight.reshape(len(weight), -1, weight.shape[-1])
    for k, rows in enumerate(table):
        active = rows >= 0
        out[active] += x[rows[active]] @ flat[:, k].T
    return out


def emulate(source: OnnxGraph, features, indices, grid, int8: bool, batch: int = 1):
    """Every tensor of the graph in float64: rows, or the dense map.

    int8: the layers marked so round their input per tensor and their weight per output channel;
    an int8 addition rounds both inputs with its own ranges.
    """
    graph = build_graph(source)
    tensors = {graph.source: np.asarray(features, np.float64)}
    sites = {graph.source: (indices, tuple(grid))}
    books: dict = {}
    for node in graph.nodes:
        if isinstance(node, ConvNode):
            rows, shape = sites[node.source]
            weight, x = node.weight.astype(np.float64), tensors[node.source]
            if int8 and node.precision == "int8":
                x = fake_quant(x, node.input_range)
                weight = fake_quant(weight, np.array(node.weight_ranges)[:, None, None, None, None])
            if node.kind == "subm":
                key = (id(rows), node.kernel)
                if key not in books:
                    books[key] = sparse.submanifold_rulebook(rows, shape, batch, node.kernel)
                book = books[key]
            else:
                book = sparse.strided_rulebook(
                    rows, shape, batch, node.kernel, node.stride, node.padding
                )
            y = gather_convolution(x, weight, book.table) + node.bias.astype(np.float64)
            tensors[node.target] = np.maximum(y, 0) if node.activation == "relu" else y
            sites[node.target] = (
                (rows, shape) if node.kind == "subm" else (book.out_indices, book.out_shape)
            )
        elif isinstance(node, AddNode):
            left, right = tensors[node.left], tensors[node.right]
            if int8 and node.precision == "int8":
                left, right = fake_quant(left, node.left_range), fake_quant(right, node.right_range)
            tensors[node.target] = left + right
            sites[node.target] = sites[node.left]
        elif isinstance(node, ReluNode):
            tensors[node.target] = np.maximum(tensors[node.source], 0)
            sites[node.target] = sites[node.source]
        elif isinstance(node, ReshapeNode):
            tensors[node.target] = tensors[node.source]
        else:
            rows, shape = sites[node.source]
            tensors[node.target] = sparse.scatter_dense(tensors[node.source], rows, shape, batch)
    return tensors, sites


def calibrated_example(features, indices, grid) -> OnnxGraph:
    """The example file with the QAT exporter's precision and ranges (amax of a float run)."""
    source = read_onnx(example_path())
    tensors, _ = emulate(source, features, indices, grid, int8=False)
    convolutions = [n for n in source.nodes if n.op_type == "SparseConvolution"]
    additions = [n for n in source.nodes if n.op_type == "Add"]
    for index, node in enumerate(convolutions):
        weight = source.weights[node.inputs[1]].astype(np.float64)
        node.attributes["input_dynamic_range"] = float(np.abs(tensors[node.inputs[0]]).max())
        node.attributes["weight_dynamic_ranges"] = [
            float(r) for r in np.abs(weight).max((1, 2, 3, 4))
        ]
        node.attributes["precision"] = "fp16" if index < 3 else "int8"
        last = index == len(convolutions) - 1
        node.attributes["output_precision"] = "fp16" if index < 3 or last else "int8"
    for index, node in enumerate(additions):
        for side in (0, 1):
            amax = float(np.abs(tensors[node.inputs[side]]).max())
            node.attributes[f"input{side}_dynamic_range"] = amax
        node.attributes["precision"] = "fp16" if index == 0 else "int8"
        node.attributes["output_precision"] = "int8"
        if index % 2:
            node.op_type = "QuantAdd"
    return source


def with_inverse(source: OnnxGraph) -> None:
    """Puts an inverse convolution, and a strided one to come back, before the first block."""
    nodes = {node.name: node for node in source.nodes}
    first, second = nodes["conv0"], nodes["conv1"]
    channels = source.weights[first.inputs[1]].shape[0]
    rng = np.random.default_rng(0)
    tensor = first.outputs[0]
    extra = []
    for name, inverse in (("down", 0), ("up", 1)):
        weight = 0.2 * rng.standard_normal((channels, 3, 3, 3, channels))
        source.weights[f"{name}.weight"] = weight.astype(np.float16)
        source.weights[f"{name}.bias"] = np.zeros(channels, np.float16)
        node = copy.deepcopy(second)
        node.name = name
        node.inputs[:] = [tensor, f"{name}.weight", f"{name}.bias"]
        tensor = f"{name}.out"
        node.outputs[:] = [tensor]
        node.attributes.update(
            subm=0, inverse=inverse, rulebook="pair", stride=[2, 2, 2], padding=[1, 1, 1]
        )
        extra.append(node)
    for node in source.nodes:
        if node is not first:
            node.inputs[:] = [tensor if n == first.outputs[0] else n for n in node.inputs]
    source.nodes[1:1] = extra
