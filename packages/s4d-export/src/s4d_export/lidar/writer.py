"""The ONNX file in the schema that libspconv reads: node types, attributes, OKI half weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from s4d_core.lidar import SparseConv3d, SparseEncoder
from s4d_ops.sparse_torch import output_shape

from ..errors import ExportError
from .layers import AddLayer, ConvLayer, Layer, encoder_layers
from .quantize import Ranges

__all__ = ["encoder_to_onnx"]

OPSET, IR_VERSION = 11, 8
# libspconv allocates this many rows per layer; the engine of s4d-runtime has no such limit.
OUTPUT_BOUND = 200_000


class _Graph:
    """Nodes and weights under construction; tensors are numbered in order, the input is "0"."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last = 0

    def add(self, kind: str, name: str, inputs: list[str], **attributes: object) -> str:
        self.last += 1
        node = helper.make_node(kind, inputs, [str(self.last)], name=name)
        for key, value in sorted(attributes.items()):
            node.attribute.append(helper.make_attribute(key, value))
        self.nodes.append(node)
        return str(self.last)

    def weight(self, name: str, array: np.ndarray) -> str:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused below
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise ExportError(
                f"{name} has values that half precision cannot hold (largest "
                f"{np.abs(array).max():.4g}, limit 65504)"
            )
        self.weights.append(numpy_helper.from_array(half, name))
        return name


def encoder_to_onnx(
    encoder: SparseEncoder,
    ranges: Ranges | None = None,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The graph of a folded encoder.

    Args:
        ranges: makes an int8 file; layers in ``ranges.half`` stay fp16. A tensor is marked int8
            where all its readers are.
        metadata: key-value pairs for the file.

    Raises:
        ExportError: batch normalisation is not folded, or a weight does not fit into half.
        QuantizationError: a layer has no usable range.
    """
    layers = encoder_layers(encoder)
    if ranges is not None:
        ranges.check(encoder)
    graph = _Graph()
    config = encoder.config
    shape = config.grid_shape
    block_input = current = "0"
    for position, layer in enumerate(layers):
        if isinstance(layer, AddLayer):
            kind = "Add" if ranges is None else "QuantAdd"
            attributes = _add_attributes(layer, layers, position, ranges)
            current = graph.add(kind, layer.name, [current, block_input], **attributes)
            current = graph.add("Relu", layer.name.replace("add", "relu"), [current])
            continue
        if layer.module.endswith("conv1"):
            block_input = current
        current, shape = _convolution(graph, layer, layers, position, current, shape, ranges)
    current = _to_bev(graph, encoder, current, shape)
    return _model(graph, encoder, current, shape, metadata or {})


def _convolution(
    graph: _Graph,
    layer: ConvLayer,
    layers: list[Layer],
    position: int,
    source: str,
    shape: tuple[int, int, int],
    ranges: Ranges | None,
) -> tuple[str, tuple[int, int, int]]:
    conv = layer.conv
    subm = not isinstance(conv, SparseConv3d)
    dilation = conv.dilation
    if isinstance(conv, SparseConv3d):
        stride, padding = conv.stride, conv.padding
        out = output_shape(shape, conv.kernel_size, stride, padding, dilation)
    else:
        stride, out = (1, 1, 1), shape
        half = [k // 2 * d for k, d in zip(conv.kernel_size, dilation, strict=True)]
        padding = (half[0], half[1], half[2])
    attributes: dict[str, object] = {
        "ndim": 3,
        "input_spatial_shape": list(shape),
        "output_spatial_shape": list(out),
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": list(conv.kernel_size),
        "stride": list(stride),
        "padding": list(padding),
        "dilation": list(dilation),
        "output_padding": [0, 0, 0],
        "groups": 1,
        "transposed": 0,
        "inverse": 0,
        "subm": int(subm),
        "activation": "ReLU" if layer.relu else "None",
        "output_bound": OUTPUT_BOUND,
    }
    if layer.rulebook:
        attributes["rulebook"] = layer.rulebook
    if ranges is not None:
        int8 = layer.name not in ranges.half
        attributes["precision"] = "int8" if int8 else "fp16"
        attributes["output_precision"] = _output_precision(layers, position, ranges)
        if int8:
            attributes["input_dynamic_range"] = ranges.inputs[layer.name]
            attributes["weight_dynamic_ranges"] = ranges.weight_ranges(layer)
    number = layer.name.removeprefix("conv")
    weight = graph.weight(f"spconv{number}.weight", conv.weight.detach().cpu().numpy())
    values = np.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().cpu().numpy()
    bias = graph.weight(f"spconv{number}.bias", values)
    target = graph.add("SparseConvolution", layer.name, [source, weight, bias], **attributes)
    return target, out


def _add_attributes(
    layer: AddLayer, layers: list[Layer], position: int, ranges: Ranges | None
) -> dict[str, object]:
    if ranges is None:
        return {}
    attributes: dict[str, object] = {}
    if layer.name in ranges.adds:  # in half none are needed, and a trained student has none
        left, right = ranges.adds[layer.name]
        attributes = {"input0_dynamic_range": left, "input1_dynamic_range": right}
    attributes["precision"] = "fp16" if layer.name in ranges.half else "int8"
    attributes["output_precision"] = _output_precision(layers, position, ranges)
    return attributes


def _output_precision(layers: list[Layer], position: int, ranges: Ranges) -> str:
    """ "int8" where every layer that reads this output is int8. The last output is fp16."""
    layer, rest = layers[position], layers[position + 1 :]
    readers = rest[:1]
    in_block = isinstance(layer, ConvLayer) and layer.module.rpartition(".")[2] in (
        "conv1",
        "conv2",
    )
    if not in_block and rest and rest[0].module.endswith("conv1"):
        # A block input is also read by the block's addition.
        readers = [rest[0], next(item for item in rest if isinstance(item, AddLayer))]
    int8 = bool(readers) and all(item.name not in ranges.half for item in readers)
    return "int8" if int8 else "fp16"


def _to_bev(graph: _Graph, encoder: SparseEncoder, source: str, shape: tuple[int, int, int]) -> str:
    config = encoder.config
    channels = config.out_channels
    dense = graph.add(
        "ScatterDense",
        "scatter0",
        [source],
        format=config.index_order,
        input_spatial_shape=list(shape),
        output_layout="NCHW",
        output_shape=[1, channels, *shape],
    )
    order = config.axis_order
    if order != (0, 1, 2):
        dense = graph.add(
            "Transpose", "transpose0", [dense], dims=[0, 1, *(axis + 2 for axis in order)]
        )
    depth, height, width = (shape[axis] for axis in order)
    return graph.add("Reshape", "reshape0", [dense], dims=[1, channels * depth, height, width])


def _model(
    graph: _Graph,
    encoder: SparseEncoder,
    output: str,
    shape: tuple[int, int, int],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    config = encoder.config
    depth, height, width = (shape[axis] for axis in config.axis_order)
    half = TensorProto.FLOAT16
    proto = helper.make_graph(
        graph.nodes,
        config.name,
        [helper.make_tensor_value_info("0", half, ["voxels", config.in_channels])],
        [
            helper.make_tensor_value_info(
                output, half, [1, config.out_channels * depth, height, width]
            )
        ],
        graph.weights,
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("ai.onnx", OPSET)],
        producer_name="s4d-export",
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, dict(metadata))
    return model
