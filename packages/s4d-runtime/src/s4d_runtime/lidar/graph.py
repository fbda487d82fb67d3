"""libspconv's graph schema: from parsed ONNX nodes to checked ones.

Node types: SparseConvolution, Add or QuantAdd, Relu, ScatterDense, Transpose, Reshape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import LidarGraphError
from .nodes import (
    AddNode,
    ConvNode,
    LidarGraph,
    Node,
    ReluNode,
    ReshapeNode,
    ScatterNode,
    TransposeNode,
    Triple,
    reads,
)
from .onnx_file import OnnxGraph, OnnxNode

__all__ = ["build_graph"]

_ACTIVATIONS = {"None": "none", "": "none", "ReLU": "relu", "LeakyReLU": "leaky_relu",
                "Sigmoid": "sigmoid"}  # fmt: skip


class _Attributes:
    """Typed access to a node's attributes, with the node's name in every message."""

    def __init__(self, node: OnnxNode) -> None:
        self.node = node
        self.where = f"{node.op_type} {node.name!r}"

    def fail(self, text: str) -> LidarGraphError:
        return LidarGraphError(f"{self.where}: {text}")

    def get(self, name: str, kind: type, default: Any) -> Any:
        value = self.node.attributes.get(name, default)
        if isinstance(value, int) and kind is float:
            value = float(value)
        if not isinstance(value, kind):
            raise self.fail(f"expected attribute {name} of type {kind.__name__}, got {value!r}")
        return value

    def ints(self, name: str, count: int, default: Sequence[int] | None = None) -> tuple[int, ...]:
        value = self.node.attributes.get(name, list(default) if default is not None else None)
        if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
            raise self.fail(f"expected attribute {name} with {count or 'some'} integers")
        if count and len(value) != count:
            raise self.fail(f"expected {count} integers in {name}, got {value[:9]}")
        return tuple(int(v) for v in value)

    def triple(self, name: str, default: Sequence[int] | None = None) -> Triple:
        a, b, c = self.ints(name, 3, default)
        return a, b, c

    def precision(self, name: str) -> str:
        value: str = self.get(name, str, "fp16").lower()
        if value not in ("fp16", "int8"):
            raise self.fail(f'expected {name} "fp16" or "int8", got {value!r}')
        return value

    def range(self, name: str) -> float:
        value: float = self.get(name, float, 0.0)
        if not (math.isfinite(value) and value >= 0):
            raise self.fail(f"expected a finite {name} >= 0, got {value}")
        return value


def build_graph(source: OnnxGraph) -> LidarGraph:
    """Check a parsed file.

    Raises:
        LidarGraphError: an operator, attribute or connection that the engine does not run; the
            message names the node.
    """
    if len(source.inputs) != 1 or not source.outputs:
        raise LidarGraphError(
            f"expected one graph input and at least one output, got {len(source.inputs)} and "
            f"{len(source.outputs)}"
        )
    known = {source.inputs[0]}
    nodes: list[Node] = []
    for item in source.nodes:
        attributes = _Attributes(item)
        build = _BUILDERS.get(item.op_type)
        if build is None:
            raise attributes.fail(
                f"the engine runs {', '.join(sorted(_BUILDERS))}, not this operator"
            )
        if len(item.outputs) != 1:
            raise attributes.fail(f"expected one output, got {len(item.outputs)}")
        node = build(item, attributes, source)
        for name in reads(node):
            if name not in known:
                raise attributes.fail(f"reads the tensor {name!r} before it is computed")
        if node.target in known:
            raise attributes.fail(f"writes the tensor {node.target!r} a second time")
        known.add(node.target)
        nodes.append(node)
    if missing := [name for name in source.outputs if name not in known]:
        raise LidarGraphError(f"no node computes the graph output {missing[0]!r}")
    first = next((n for n in nodes if isinstance(n, ConvNode)), None)
    if first is None or first.source != source.inputs[0]:
        raise LidarGraphError("expected a graph that begins with a SparseConvolution of its input")
    return LidarGraph(
        tuple(nodes), source.inputs[0], tuple(source.outputs), first.grid_shape,
        first.weight.shape[-1], source.metadata,
    )  # fmt: skip


def _inputs(item: OnnxNode, attributes: _Attributes, count: int) -> list[str]:
    if len(item.inputs) != count or not all(item.inputs):
        raise attributes.fail(f"expected {count} inputs, got {item.inputs}")
    return item.inputs


def _convolution(item: OnnxNode, attributes: _Attributes, graph: OnnxGraph) -> ConvNode:
    source, weight_name, bias_name = _inputs(item, attributes, 3)
    for name in (weight_name, bias_name):
        if name not in graph.weights:
            raise attributes.fail(f"the weight {name!r} is not in the file")
    weight, bias = graph.weights[weight_name], graph.weights[bias_name]
    kernel = attributes.triple("kernel_size")
    out_channels = attributes.get("out_channels", int, weight.shape[0] if weight.ndim else 0)
    in_channels = attributes.get("in_channels", int, weight.shape[-1] if weight.ndim else 0)
    expected = (out_channels, *kernel, in_channels)
    if weight.shape != expected or bias.shape != (out_channels,):
        raise attributes.fail(
            f"expected weight {expected} and bias ({out_channels},), got {weight.shape} and "
            f"{bias.shape}"
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise attributes.fail("weight or bias has NaN or infinite values")
    if attributes.get("ndim", int, 3) != 3 or attributes.get("groups", int, 1) != 1:
        raise attributes.fail("expected ndim 3 and groups 1")
    if attributes.get("transposed", int, 0) or any(attributes.ints("output_padding", 0, ())):
        raise attributes.fail("transposed convolutions and output padding are not supported")
    activation = attributes.get("activation", str, "None")
    if activation not in _ACTIVATIONS:
        raise attributes.fail(f"unknown activation {activation!r}")
    precision = attributes.precision("precision")
    ranges = item.attributes.get("weight_dynamic_ranges", [])
    if not isinstance(ranges, list) or (ranges and len(ranges) != out_channels):
        raise attributes.fail(f"expected {out_channels} weight_dynamic_ranges")
    input_range = attributes.range("input_dynamic_range")
    if precision == "int8" and (not ranges or input_range <= 0):
        raise attributes.fail(
            "an int8 layer needs input_dynamic_range > 0 and weight_dynamic_ranges; calibrate it"
        )
    if any(not (math.isfinite(r) and r >= 0) for r in ranges):
        raise attributes.fail("expected finite weight_dynamic_ranges >= 0")
    inverse, subm = attributes.get("inverse", int, 0), attributes.get("subm", int, 0)
    kind = "inverse" if inverse else "subm" if subm else "strided"
    rulebook = attributes.get("rulebook", str, "")
    if kind == "inverse" and not rulebook:
        raise attributes.fail("an inverse convolution needs the rulebook name of its forward one")
    return ConvNode(
        item.name, source, item.outputs[0], weight, bias, kernel,
        attributes.triple("stride", (1, 1, 1)), attributes.triple("padding", (0, 0, 0)),
        attributes.triple("dilation", (1, 1, 1)), attributes.triple("input_spatial_shape"),
        kind, rulebook, _ACTIVATIONS[activation], precision,
        attributes.precision("output_precision"), input_range, tuple(float(r) for r in ranges),
    )  # fmt: skip


def _add(item: OnnxNode, attributes: _Attributes, graph: OnnxGraph) -> AddNode:
    left, right = _inputs(item, attributes, 2)
    node = AddNode(
        item.name, left, right, item.outputs[0], attributes.range("input0_dynamic_range"),
        attributes.range("input1_dynamic_range"), attributes.precision("precision"),
        attributes.precision("output_precision"),
    )  # fmt: skip
    if node.precision == "int8" and not (node.left_range > 0 and node.right_range > 0):
        raise attributes.fail("an int8 addition needs both input ranges; calibrate it")
    return node


def _relu(item: OnnxNode, attributes: _Attributes, graph: OnnxGraph) -> ReluNode:
    return ReluNode(item.name, _inputs(item, attributes, 1)[0], item.outputs[0])


def _scatter(item: OnnxNode, attributes: _Attributes, graph: OnnxGraph) -> ScatterNode:
    order = attributes.get("format", str, "zyx")
    if order not in ("zyx", "xyz"):
        raise attributes.fail(f'expected format "zyx" or "xyz", got {order!r}')
    layout = attributes.get("output_layout", str, "NCHW")
    if layout != "NCHW":
        raise attributes.fail(f"expected output_layout NCHW, got {layout!r}")
    return ScatterNode(item.name, _inputs(item, attributes, 1)[0], item.outputs[0], order)


def _transpose(item: OnnxNode, attributes: _Attributes, graph: OnnxGraph) -> TransposeNode:
    name = "dims" if "dims" in item.attributes else "perm"
    order = attributes.ints(name, 0)
    if sorted(order) != list(range(len(order))):
        raise attributes.fail(f"expected a permutation, got {order[:9]}")
    return TransposeNode(item.name, _inputs(item, attributes, 1)[0], item.outputs[0], order)


def _reshape(item: OnnxNode, attributes: _Attributes, graph: OnnxGraph) -> ReshapeNode:
    shape = attributes.ints("dims", 0)
    return ReshapeNode(item.name, _inputs(item, attributes, 1)[0], item.outputs[0], shape)


_BUILDERS: dict[str, Any] = {
    "SparseConvolution": _convolution,
    "Add": _add,
    "QuantAdd": _add,
    "Relu": _relu,
    "ScatterDense": _scatter,
    "Transpose": _transpose,
    "Reshape": _reshape,
}
