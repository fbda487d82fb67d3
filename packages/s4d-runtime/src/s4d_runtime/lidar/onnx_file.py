"""The parts of an ONNX file that the sparse engine needs, without the onnx package."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..onnx_wire import Value, floats_of, read_fields, signed, varints_of
from .errors import OnnxFileError

__all__ = ["OnnxGraph", "OnnxNode", "parse_onnx", "read_onnx"]

Attribute = int | float | str | list[int] | list[float]
# ONNX element type to numpy; what weights may be stored as.
_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2"), 11: np.dtype("<f8")}


@dataclass
class OnnxNode:
    """One node: operator, name, tensor names, attributes by name."""

    op_type: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, Attribute] = field(default_factory=dict)


@dataclass
class OnnxGraph:
    """The graph: nodes in file order, weights, names of inputs and outputs, metadata."""

    nodes: list[OnnxNode] = field(default_factory=list)
    weights: dict[str, NDArray[np.floating]] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


def read_onnx(path: str | os.PathLike[str]) -> OnnxGraph:
    """Parse a file.

    Raises:
        OnnxFileError: the file cannot be opened or parsed.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise OnnxFileError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from None
    try:
        return parse_onnx(data)
    except OnnxFileError as error:
        raise OnnxFileError(f"{Path(path).name}: {error}") from None


def parse_onnx(data: bytes) -> OnnxGraph:
    """Parse the bytes of a ModelProto.

    Raises:
        OnnxFileError: truncated, malformed, no graph, external data, or an unknown element type.
    """
    graph: OnnxGraph | None = None
    metadata: dict[str, str] = {}
    for number, _, value in read_fields(memoryview(data)):
        if number == 7:
            graph = _graph(_bytes(value))
        elif number == 14:
            entry = {n: _text(v) for n, _, v in read_fields(_bytes(value)) if n in (1, 2)}
            metadata[entry.get(1, "")] = entry.get(2, "")
    if graph is None:
        raise OnnxFileError("no graph in it; this is not an ONNX model")
    graph.metadata = metadata
    return graph


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise OnnxFileError("a message is stored as a number; this is not an ONNX file")
    return value


def _int(value: Value) -> int:
    if not isinstance(value, int):
        raise OnnxFileError("a number is stored as bytes; this is not an ONNX file")
    return signed(value)


def _text(value: Value) -> str:
    try:
        return str(_bytes(value), "utf-8")
    except UnicodeDecodeError:
        raise OnnxFileError("a name is not UTF-8 text; this is not an ONNX file") from None


def _graph(data: memoryview) -> OnnxGraph:
    graph = OnnxGraph()
    for number, _, value in read_fields(data):
        if number == 1:
            graph.nodes.append(_node(_bytes(value)))
        elif number == 5:
            name, array = _tensor(_bytes(value))
            if name in graph.weights:
                raise OnnxFileError(f"the weight {name!r} is there twice")
            graph.weights[name] = array
        elif number in (11, 12):
            names = [_text(v) for n, _, v in read_fields(_bytes(value)) if n == 1]
            (graph.inputs if number == 11 else graph.outputs).extend(names[:1])
    return graph


def _node(data: memoryview) -> OnnxNode:
    node = OnnxNode()
    for number, _, value in read_fields(data):
        if number == 1:
            node.inputs.append(_text(value))
        elif number == 2:
            node.outputs.append(_text(value))
        elif number == 3:
            node.name = _text(value)
        elif number == 4:
            node.op_type = _text(value)
        elif number == 5:
            name, attribute = _attribute(_bytes(value))
            if attribute is not None:
                node.attributes[name] = attribute
    return node


def _attribute(data: memoryview) -> tuple[str, Attribute | None]:
    """Numbers, text and their lists; tensors and graphs in attributes are passed over."""
    name, kind = "", 0
    scalar: Attribute | None = None
    ints: list[int] = []
    floats: list[float] = []
    for number, wire, value in read_fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            scalar = floats_of(wire, value)[0] if not isinstance(value, int) and value else None
        elif number == 3:
            scalar = _int(value)
        elif number == 4:
            scalar = _text(value)
        elif number == 7:
            floats.extend(floats_of(wire, value))
        elif number == 8:
            ints.extend(varints_of(wire, value))
        elif number == 20:
            kind = _int(value)
    # A value equal to its default may be left out of the file; the type then says what it is.
    defaults: dict[int, Callable[[], Attribute]] = {1: float, 2: int, 3: str}
    if kind == 6 or (kind == 0 and floats):
        return name, floats
    if kind == 7 or (kind == 0 and ints):
        return name, ints
    if scalar is None and kind in defaults:
        scalar = defaults[kind]()
    return name, scalar


def _tensor(data: memoryview) -> tuple[str, NDArray[np.floating]]:
    name, code = "", 0
    dims: list[int] = []
    raw: memoryview | None = None
    floats: list[float] = []
    halves: list[int] = []
    for number, wire, value in read_fields(data):
        if number == 1:
            dims.extend(varints_of(wire, value))
        elif number == 2:
            code = _int(value)
        elif number == 4:
            floats.extend(floats_of(wire, value))
        elif number == 5:
            halves.extend(varints_of(wire, value))
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = _bytes(value)
        elif number == 13 or (number == 14 and _int(value) == 1):
            raise OnnxFileError(f"the weight {name!r} lies outside the file; store it inside")
    if code not in _DTYPES:
        raise OnnxFileError(
            f"the weight {name!r} has ONNX element type {code}; expected float16 (10), float (1) "
            "or double (11)"
        )
    dtype = _DTYPES[code]
    count = math.prod(dims)
    if len(dims) > 8 or any(d < 0 for d in dims):
        raise OnnxFileError(f"the weight {name!r} has impossible dimensions {dims[:9]}")
    if raw is not None:
        if len(raw) != count * dtype.itemsize:
            raise OnnxFileError(
                f"the weight {name!r} of shape {dims} needs {count * dtype.itemsize} bytes, got "
                f"{len(raw)}"
            )
        return name, np.frombuffer(raw, dtype).reshape(dims)
    if code == 10:  # half values may also be stored as the low 16 bits of integers
        if any(not 0 <= h < 1 << 16 for h in halves):
            raise OnnxFileError(f"the weight {name!r} has values that are not 16-bit patterns")
        array = np.array(halves, np.uint16).view(np.float16)
    else:
        array = np.array(floats, dtype)
    if array.size != count:
        raise OnnxFileError(f"the weight {name!r} of shape {dims} has {array.size} values")
    return name, array.reshape(dims)
