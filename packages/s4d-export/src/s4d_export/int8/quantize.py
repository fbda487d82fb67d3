"""Explicit eight-bit convolutions: QuantizeLinear and DequantizeLinear written into the graph.

Every quantised convolution reads its input through one Q/DQ pair (per tensor, symmetric) and its
weight from int8 with one scale per output channel. Biases and everything else keep their type. A
tensor is quantised once, whoever reads it; an identity shortcut around a residual block reads the
same eight bits as the block's first convolution, so that TensorRT can fuse the addition.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..errors import QuantizationError
from ..graph.check import infer_shapes
from ..graph.naming import module_of
from ..graph.surgery import SCOPE, tensor_types
from .calibration import Calibration, fingerprint

__all__ = ["Point", "find_points", "to_int8"]

LEVELS = 127
# Scales must be normal numbers of the graph's type: below, float16 loses their digits.
SMALLEST_SCALE: dict[int, float] = {TensorProto.FLOAT: 2.0**-100, TensorProto.FLOAT16: 2.0**-14}


@dataclass(frozen=True)
class Point:
    """An input of a node that reads eight bits.

    Attributes:
        node: name of the node.
        position: which of its inputs.
        tensor: name of the tensor there, in the graph without Q/DQ.
        weight: name of the node's weight, "" for a shortcut.
    """

    node: str
    position: int
    tensor: str
    weight: str


def find_points(
    model: onnx.ModelProto, exclude: Collection[str] = (), scope: Collection[str] = SCOPE
) -> list[Point]:
    """Where a graph is quantised: convolutions in `scope`, then the shortcuts around them.

    Args:
        exclude: patterns of node names that keep their precision.

    Raises:
        QuantizationError: a pattern of `exclude` matches no such node.
    """
    constants = {value.name for value in model.graph.initializer}
    inside = [n for n in model.graph.node if any(fnmatchcase(n.name, s) for s in scope)]
    convolutions = [
        n
        for n in inside
        if n.op_type == "Conv" and n.input[1] in constants and n.input[0] not in constants
    ]
    points = [Point(n.name, 0, n.input[0], n.input[1]) for n in convolutions]
    read = {point.tensor for point in points}
    for node in inside:
        if node.op_type == "Add" and not constants.intersection(node.input):
            known = [name in read for name in node.input]
            if sum(known) == 1:  # the shortcut of a residual block
                position = known.index(True)
                points.append(Point(node.name, position, node.input[position], ""))
    for pattern in exclude:
        if not any(fnmatchcase(point.node, pattern) for point in points):
            raise QuantizationError(
                f"the exclusion {pattern!r} matches no quantised node; "
                "s4d-export quantize --sensitivity lists their names"
            )
    kept = [point for point in points if not _matches(point.node, exclude)]
    read = {point.tensor for point in kept if point.weight}
    return [point for point in kept if point.weight or point.tensor in read]


def to_int8(
    model: onnx.ModelProto,
    calibration: Calibration,
    exclude: Collection[str] = (),
    scope: Collection[str] = SCOPE,
    reference: onnx.ModelProto | None = None,
) -> onnx.ModelProto:
    """A copy of a float32 or half-precision graph with quantised convolutions.

    Args:
        model: what to quantise; for INT8 beside FP16 the result of ``to_half``.
        calibration: ranges of the float32 graph's tensors.
        exclude: patterns of node names that keep their precision.
        reference: the float32 graph that was calibrated, if `model` is another one.

    Raises:
        QuantizationError: the calibration belongs to another graph or lacks a tensor.
    """
    plain = reference if reference is not None else model
    points = find_points(plain, exclude, scope)
    missing = [point.tensor for point in points if point.tensor not in calibration.ranges]
    if missing:
        raise QuantizationError(
            f"the calibration has no range for {missing[0]!r}; calibrate this model"
        )
    if fingerprint(plain, calibration.ranges) != calibration.graph:
        raise QuantizationError(
            "the calibration was made for another model (its layers or weights differ); "
            "calibrate this one"
        )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Insertion(result, plain, calibration).run(points)
    infer_shapes(result)
    return result


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class _Insertion:
    """Puts Q/DQ in front of the points of one graph."""

    def __init__(
        self, model: onnx.ModelProto, plain: onnx.ModelProto, calibration: Calibration
    ) -> None:
        self.graph = model.graph
        self.types = tensor_types(model)
        self.weights = {value.name: value for value in plain.graph.initializer}
        self.calibration = calibration
        self.pairs: dict[str, str] = {}  # tensor of the graph to what stands for it
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def run(self, points: list[Point]) -> None:
        """Rewrite the node list in place."""
        wanted: dict[str, list[Point]] = {}
        for point in points:
            wanted.setdefault(point.node, []).append(point)
        for node in list(self.graph.node):
            for point in wanted.pop(node.name, ()):
                name = node.input[point.position]
                node.input[point.position] = self._pair(name, point.tensor)
                if point.weight:
                    node.input[1] = self._weight(node.input[1], point.weight)
            self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [value for value in self.graph.initializer if value.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend([*kept, *self.constants.values()])

    def _pair(self, name: str, tensor: str) -> str:
        known = self.pairs.get(name)
        if known is not None:
            return known
        kind = self.types[name].tensor_type.elem_type
        scale = max(self.calibration.ranges[tensor] / LEVELS, SMALLEST_SCALE[kind])
        inputs = [
            self._constant(f"{name}.scale", np.array(scale), kind),
            self._constant("int8.zero", np.array(0, np.int8), TensorProto.INT8),
        ]
        stem = module_of(tensor) if "/" in tensor else "graph"
        stored, read = f"{name}.int8", f"{name}.read"
        number = f".{len(self.pairs)}"
        self.nodes += [
            helper.make_node(
                "QuantizeLinear", [name, *inputs], [stored], f"{stem}/Quantize{number}"
            ),
            helper.make_node(
                "DequantizeLinear", [stored, *inputs], [read], f"{stem}/Dequantize{number}"
            ),
        ]
        self.pairs[name] = read
        return read

    def _weight(self, name: str, plain: str) -> str:
        if name in self.pairs:
            return self.pairs[name]
        kind = self.types[name].tensor_type.elem_type
        scale, stored = quantise_weight(numpy_helper.to_array(self.weights[plain]), kind)
        inputs = [
            self._constant(f"{name}.int8", stored, TensorProto.INT8),
            self._constant(f"{name}.scale", scale, kind),
            self._constant(f"{name}.zero", np.zeros(len(scale), np.int8), TensorProto.INT8),
        ]
        read, stem = f"{name}.read", plain.removesuffix(".weight")
        self.nodes.append(
            helper.make_node("DequantizeLinear", inputs, [read], f"{stem}/Weight", axis=0)
        )
        self.pairs[name] = read
        return read

    def _constant(self, name: str, values: NDArray[np.generic], kind: int) -> str:
        if name not in self.constants:
            array = values.astype(helper.tensor_dtype_to_np_dtype(kind))
            self.constants[name] = numpy_helper.from_array(array, name)
        return name


def quantise_weight(
    weight: NDArray[np.float32], kind: int = TensorProto.FLOAT
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Scales (out,) and int8 values of a weight (out, ...): the largest magnitude becomes 127.

    Args:
        kind: type that the scale is stored in; the values are rounded with the stored scale.
    """
    largest = np.abs(weight.reshape(len(weight), -1).astype(np.float64)).max(axis=1)
    scale = np.maximum(largest / LEVELS, SMALLEST_SCALE[kind])
    scale = scale.astype(helper.tensor_dtype_to_np_dtype(kind)).astype(np.float64)
    shaped = scale.reshape(-1, *[1] * (weight.ndim - 1))
    stored = np.clip(np.rint(weight / shaped), -LEVELS, LEVELS)
    return scale, stored.astype(np.int8)
