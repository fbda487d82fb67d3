"""The tiny echo graph with a small half-precision network in it, whose operators get fused.

Its score stands in column 7 of row 0 of ``boxes``; everything else is as in ``runtime_tiny``.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from fusion_graphs import HEIGHT, WIDTH, network
from onnx import TensorProto, compose, helper, numpy_helper
from runtime_tiny import tiny_manifest, tiny_onnx

from s4d_runtime.artifact import Manifest, write_artifact

SCORE = (0, 7)  # row and column of ``boxes``
WIDTHS = (16, 64, 64, 16)


def fused_onnx(manifest: Manifest, single: bool = False) -> bytes:
    """Two cameras' pictures through convolutions, then a chain of layers, then their mean."""
    rng = np.random.default_rng(2)
    echo = onnx.load_from_string(tiny_onnx(manifest))
    part = compose.add_prefix(onnx.load_from_string(network(single)), "net/").graph
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def const(value: object, dtype: type) -> str:
        name = f"fused/constant{len(weights)}"
        weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def op(kind: str, *inputs: str, **attributes: object) -> str:
        name = f"fused/{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    ends = [const(v, np.int64) for v in ([0, 0], [HEIGHT, WIDTH], [1, 2])]
    pixels = op("Cast", "images", to=TensorProto.FLOAT)
    two = op("Slice", pixels, *(const([v], np.int64) for v in (0, 2, 0)))
    crop = op("Slice", two, *ends)
    nodes.extend(part.node)
    for node in part.node:
        node.input[:] = [crop if name == "net/images" else name for name in node.input]
    x = op("Cast", part.output[0].name, to=TensorProto.FLOAT)
    for c, k in pairwise(WIDTHS):
        x = op("MatMul", x, const(rng.normal(0, c**-0.5, (c, k)), np.float32))
        x = op("Relu", op("Add", x, const(rng.normal(0, 0.2, k), np.float32)))
        shift = [const(np.ones(k), np.float32), const(rng.normal(0, 0.2, k), np.float32)]
        x = op("LayerNormalization", x, *shift, axis=-1, epsilon=1e-5)
    x = op("ReduceMean", op("Abs", x), keepdims=0)
    score = op("Reshape", x, const([1], np.int64))

    joined = next(node for node in echo.graph.node if node.output[0] == "all")
    place = list(joined.input).index("pad")
    joined.input.insert(place, score)
    padding = next(t for t in echo.graph.initializer if t.name == "pad")
    padding.CopyFrom(numpy_helper.from_array(np.zeros(2, np.float32), "pad"))
    rest = list(echo.graph.node)
    del echo.graph.node[:]
    echo.graph.node.extend([*nodes, *rest])
    echo.graph.initializer.extend([*part.initializer, *weights])
    echo.graph.value_info.append(
        helper.make_tensor_value_info(crop, TensorProto.FLOAT, [2, HEIGHT, WIDTH, 3])
    )
    onnx.checker.check_model(echo)
    data: bytes = echo.SerializeToString()
    return data


def fused_artifact(path: Path, single: bool = False) -> Path:
    # Operators are fused in artifacts that use s4d-ops.
    manifest = tiny_manifest(op="plugin")
    return write_artifact(path, manifest, {"model.onnx": fused_onnx(manifest, single)})
