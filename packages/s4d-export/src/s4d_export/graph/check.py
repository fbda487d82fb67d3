"""The contract of an exported graph, checked on the graph itself."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from ..errors import GraphError
from .contract import GraphContract
from .schema import DOMAIN, OP_TYPE, register_schemas

__all__ = ["MAX_BYTES", "OPSET", "check_graph", "infer_shapes"]

OPSET = 20
MAX_BYTES = (1 << 31) - 1  # protobuf's limit for one file with the weights inside
# Control flow and data-dependent shapes: neither CUDA graphs nor every TensorRT parser take them.
FORBIDDEN = {"If", "Loop", "Scan", "NonZero", "Unique", "Compress", "SequenceAt", "Optional"}


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the type and shape of every tensor; strict.

    Raises:
        GraphError: types or shapes contradict each other, or an operator is unknown to ONNX.
    """
    register_schemas()
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type):
            raise GraphError(f"node {node.name!r} is a {node.op_type}, which is no ONNX operator")
    try:
        return onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise GraphError(f"shapes or types in the graph contradict: {_first(error)}") from None


def check_graph(model: onnx.ModelProto, contract: GraphContract, op: str) -> onnx.ModelProto:
    """Check everything that is promised about an exported graph.

    Operators of opset 20 and, with `op` "plugin", the aggregation node only; no control flow, no
    data-dependent shape, no functions; static shapes; no float64; inputs and outputs exactly as
    `contract` lists them, in order; fewer than 2 GiB.

    Returns:
        The model with inferred types and shapes (for tools; the file does without).

    Raises:
        GraphError: names the first thing that is wrong.
    """
    _check_operators(model, op)
    size = model.ByteSize()
    if size > MAX_BYTES:
        raise GraphError(f"the graph has {size} bytes; one ONNX file holds at most {MAX_BYTES}")
    register_schemas()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise GraphError(f"not a valid ONNX graph: {_first(error)}") from None
    _check_table("input", model.graph.input, contract.inputs)
    _check_table("output", model.graph.output, contract.outputs)
    inferred = infer_shapes(model)
    _check_static(inferred)
    return inferred


def _check_operators(model: onnx.ModelProto, op: str) -> None:
    imports = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    allowed = {"ai.onnx": OPSET, **({DOMAIN: 1} if op == "plugin" else {})}
    if imports != allowed:
        raise GraphError(f"expected the operator sets {allowed}, got {imports}")
    if model.functions:
        names = ", ".join(sorted({f.name for f in model.functions})[:5])
        raise GraphError(f"the graph contains functions that should be inlined: {names}")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) != (DOMAIN, OP_TYPE):
            raise GraphError(f"node {node.name!r} is {node.domain}::{node.op_type}; not allowed")
        if node.op_type in FORBIDDEN:
            raise GraphError(f"node {node.name!r} is a {node.op_type}; the graph must be static")
        if any(
            a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
            for a in node.attribute
        ):
            raise GraphError(f"node {node.name!r} holds a subgraph; the graph must be static")


def _check_table(label: str, got: object, expected: tuple) -> None:
    table = [_describe(value) for value in got]  # type: ignore[attr-defined]
    wanted = [(spec.name, spec.dtype, tuple(spec.shape)) for spec in expected]
    if table != wanted:
        for index in range(max(len(table), len(wanted))):
            a = wanted[index] if index < len(wanted) else "nothing"
            b = table[index] if index < len(table) else "nothing"
            if a != b:
                raise GraphError(f"expected graph {label} {index} to be {a}, got {b}")


def _describe(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else "?"
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or "?")
        for dim in tensor.shape.dim
    )
    return value.name, dtype, shape


def _check_static(model: onnx.ModelProto) -> None:
    known = {}
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        known[value.name] = value.type.tensor_type
    for node in model.graph.node:
        for name in node.output:
            if not name:
                continue
            tensor = known.get(name)
            if tensor is None or not tensor.HasField("shape"):
                raise GraphError(f"the shape of {name!r} cannot be inferred")
            if any(not dim.HasField("dim_value") for dim in tensor.shape.dim):
                raise GraphError(f"the shape of {name!r} is not static")
            if tensor.elem_type == TensorProto.DOUBLE:
                raise GraphError(f"{name!r} is float64; poses are reduced on the host, before")
    for value in model.graph.initializer:
        if value.data_type == TensorProto.DOUBLE:
            raise GraphError(f"constant {value.name!r} is float64")


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
