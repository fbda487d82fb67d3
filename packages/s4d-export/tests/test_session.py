"""ONNX Runtime sessions compute the graph as it is written."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from s4d_export.graph.session import GraphSession


def quantized_convolution(rng: np.random.Generator, channels: int = 8) -> onnx.ModelProto:
    """An int8 convolution of an fp16 graph whose bias scale (2e-6 or less) half cannot hold."""
    half = np.float16
    values = {
        "weights": rng.integers(-127, 128, (channels, channels, 3, 3)).astype(np.int8),
        "weight_scales": rng.uniform(1e-4, 4e-4, channels).astype(half),
        "weight_zeros": np.zeros(channels, np.int8),
        "bias": rng.normal(size=channels).astype(half),
        "scale": np.array(0.004, half),
        "result_scale": np.array(0.02, half),
        "zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["x"]),
        helper.make_node(
            "DequantizeLinear", ["weights", "weight_scales", "weight_zeros"], ["w"], axis=0
        ),
        helper.make_node("Conv", ["x", "w", "bias"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["y", "result_scale", "zero"], ["result"]),
    ]
    shape = [1, channels, 9, 7]
    graph = helper.make_graph(
        nodes,
        "quantized_convolution",
        [helper.make_tensor_value_info("codes", TensorProto.INT8, shape)],
        [helper.make_tensor_value_info("result", TensorProto.INT8, shape)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_bias_between_half_and_int8_is_kept():
    """ONNX Runtime 1.31 rounds it to codes of an underflown scale unless told not to."""
    rng = np.random.default_rng()
    model = quantized_convolution(rng)
    codes = {"codes": rng.integers(-127, 128, (1, 8, 9, 7)).astype(np.int8)}
    written = GraphSession(model, threads=1, optimise=False).run(codes)["result"].astype(int)
    optimised = GraphSession(model, threads=1).run(codes)["result"].astype(int)
    assert np.abs(written).max() > 10
    assert np.abs(optimised - written).max() <= 1  # a sum on a code's edge may round either way
