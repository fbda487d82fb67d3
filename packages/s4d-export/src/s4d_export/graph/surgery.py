"""Cut and tap graphs: slices that compute some tensors only, and further outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

import onnx
from onnx import helper

from ..errors import GraphError
from .check import infer_shapes

__all__ = [
    "SCOPE",
    "constant_names",
    "extract",
    "feature_tensors",
    "tensor_types",
    "with_outputs",
]

SCOPE = ("backbone*", "neck*")  # names of the nodes that make the image features


def tensor_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Type and shape of every tensor of a graph, constants included, by shape inference."""
    graph = infer_shapes(model).graph
    types = {v.name: v.type for v in [*graph.input, *graph.value_info, *graph.output]}
    for value in graph.initializer:
        types.setdefault(
            value.name, helper.make_tensor_type_proto(value.data_type, list(value.dims))
        )
    return types


def constant_names(model: onnx.ModelProto) -> set[str]:
    """Names of the graph's constants."""
    return {value.name for value in model.graph.initializer}


def with_outputs(
    model: onnx.ModelProto, names: Iterable[str], keep: bool = True
) -> onnx.ModelProto:
    """A copy whose outputs are `names`, after the present ones if `keep`.

    Raises:
        GraphError: no node makes such a tensor.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if not keep:
        del result.graph.output[:]
    known = {value.name for value in result.graph.output}
    wanted = [name for name in dict.fromkeys(names) if name not in known]
    if not wanted:
        return result
    types = tensor_types(model)
    for name in wanted:
        if name not in types:
            raise GraphError(f"the graph has no tensor {name!r}")
        result.graph.output.append(helper.make_value_info(name, types[name]))
    return result


def extract(model: onnx.ModelProto, outputs: Collection[str]) -> onnx.ModelProto:
    """The part of a graph that computes `outputs`, with the inputs and constants it needs.

    Names and order of the nodes stay.

    Raises:
        GraphError: no node makes such a tensor.
    """
    result = with_outputs(model, outputs, keep=False)
    graph = result.graph
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(name for name in node.input if name)
    nodes.reverse()
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    inputs = [value for value in graph.input if value.name in needed]
    constants = [value for value in graph.initializer if value.name in needed]
    del graph.node[:], graph.input[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.input.extend(inputs)
    graph.initializer.extend(constants)
    return result


def feature_tensors(model: onnx.ModelProto, scope: Collection[str] = SCOPE) -> list[str]:
    """Tensors that leave a part of the graph for the rest: the image features."""
    made: dict[str, bool] = {}
    for node in model.graph.node:
        inside = any(fnmatchcase(node.name, pattern) for pattern in scope)
        made.update(dict.fromkeys(node.output, inside))
    leaving = dict.fromkeys(
        name
        for node in model.graph.node
        if not any(fnmatchcase(node.name, pattern) for pattern in scope)
        for name in node.input
        if made.get(name)
    )
    return list(leaving)
