"""An ONNX model whose nodes and weights can be changed, without the onnx package.

What is not changed is written back byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OnnxFileError
from ..onnx_wire import Value, floats_of, read_fields, signed, varints_of

__all__ = ["Attribute", "EditableModel", "Initializer", "Node"]

Attribute = int | float | str | list[int]

# Field numbers of onnx.proto: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto.
_OPSET, _GRAPH = 8, 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13
_INT, _INTS = 2, 7  # AttributeProto types
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    10: np.dtype("<f2"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


@dataclass(eq=False)
class Node:
    """One node. ``raw`` is how it stands in the file; None if it is ours."""

    op_type: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    domain: str = ""
    has_graph: bool = False
    raw: memoryview | None = None

    def encode(self) -> bytes:
        """As a NodeProto."""
        if self.raw is not None:
            return bytes(self.raw)
        parts = [_text(1, name) for name in self.inputs]
        parts += [_text(2, name) for name in self.outputs]
        parts += [_text(3, self.outputs[0]), _text(4, self.op_type)]
        for name, value in self.attributes.items():
            body = [_text(1, name)]
            if isinstance(value, list):
                body += [_number(8, v) for v in value] + [_number(20, _INTS)]
            elif isinstance(value, int):
                body += [_number(3, value), _number(20, _INT)]
            elif isinstance(value, float):
                body += [_varint(2 << 3 | 5), struct.pack("<f", value), _number(20, 1)]
            else:
                body += [_text(4, str(value)), _number(20, 3)]
            parts.append(_message(5, b"".join(body)))
        parts.append(_text(7, self.domain))
        return b"".join(parts)


@dataclass(eq=False)
class Initializer:
    """A constant tensor, decoded only where asked for."""

    name: str
    dtype: np.dtype[Any] | None  # None: a type that is of no interest here
    shape: tuple[int, ...]
    raw: memoryview

    def array(self) -> NDArray[Any] | None:
        """The values, or None where they lie outside the file or in a form not known here."""
        if self.dtype is None:
            return None
        listed: list[int] = []
        for number, kind, value in read_fields(self.raw):
            if number == 9 and not isinstance(value, int):
                return np.frombuffer(value, self.dtype).reshape(self.shape)
            if number == 7:
                listed += varints_of(kind, value)
        if self.dtype == np.int64 and listed:
            return np.array(listed, np.int64).reshape(self.shape)
        return None


class EditableModel:
    """Nodes, initializers and the names at the graph's ends.

    Raises:
        OnnxFileError: the bytes are not an ONNX model.
    """

    def __init__(self, model: bytes) -> None:
        self._model = memoryview(model)
        self.nodes: list[Node] = []
        self.initializers: dict[str, Initializer] = {}
        self.outputs: set[str] = set()
        self.input_shapes: dict[str, tuple[int, ...]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # tensors whose shape is to be said
        self.shaped_type: np.dtype[Any] = np.dtype(np.float16)  # their type
        self._added: list[bytes] = []
        self._kept: list[bytes] = []  # of the graph, what is handed on as it is
        graphs = [_bytes(v) for n, _, v in read_fields(self._model) if n == _GRAPH]
        if len(graphs) != 1:
            raise OnnxFileError(f"expected one graph, got {len(graphs)}; this is not an ONNX model")
        for number, _, value in read_fields(graphs[0]):
            if number == _NODE:
                self.nodes.append(_read_node(_bytes(value)))
            elif number == _INITIALIZER:
                tensor = _read_initializer(_bytes(value))
                self.initializers[tensor.name] = tensor
            else:
                if number == _INPUT:
                    name, shape = _read_value_info(_bytes(value))
                    self.input_shapes[name] = shape
                elif number == _OUTPUT:
                    self.outputs.add(_read_value_info(_bytes(value))[0])
                kept = _message(number, bytes(value)) if not isinstance(value, int) else b""
                self._kept.append(kept)

    def array(self, name: str) -> NDArray[Any] | None:
        """A constant's values, or None where there is no such constant."""
        tensor = self.initializers.get(name)
        return None if tensor is None else tensor.array()

    def add(self, name: str, array: NDArray[Any]) -> str:
        """Add a constant; one of that name is taken to be the same."""
        if name not in self.initializers:
            dtype = array.dtype.newbyteorder("<")
            head = b"".join(_number(1, n) for n in array.shape) + _number(2, _CODES[dtype])
            body = head + _text(8, name) + _message(9, np.ascontiguousarray(array, dtype).tobytes())
            self.initializers[name] = Initializer(name, dtype, array.shape, memoryview(body))
        return name

    def prune(self) -> None:
        """Drop the nodes whose results nothing reads any more."""
        read = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if not read.isdisjoint(node.outputs):
                read.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]

    def encode(self, domain: str = "") -> bytes:
        """The whole model, without what nothing reads; a ``domain`` is added in version 1."""
        self.prune()
        used = {name for node in self.nodes for name in node.inputs} | self.outputs
        graph = [_message(_NODE, node.encode()) for node in self.nodes]
        graph += [
            _message(_INITIALIZER, tensor.raw)
            for tensor in self.initializers.values()
            if tensor.name in used
        ]
        graph += self._kept
        graph += [
            _message(_VALUE_INFO, _value_info(name, shape, self.shaped_type))
            for name, shape in self.shapes.items()
        ]
        parts = []
        for number, kind, value in read_fields(self._model):
            if number == _GRAPH:
                parts.append(_message(_GRAPH, b"".join(graph)))
            elif kind == 0:
                assert isinstance(value, int)
                parts.append(_number(number, value))
            else:
                parts.append(_message(number, _bytes(value)))
        if domain:
            parts.append(_message(_OPSET, _text(1, domain) + _number(2, 1)))
        return b"".join(parts)


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise OnnxFileError("a message is stored as a number; this is not an ONNX file")
    return value


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _message(number: int, body: bytes | memoryview) -> bytes:
    return b"".join((_varint(number << 3 | 2), _varint(len(body)), body))


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode())


def _value_info(name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    dims = b"".join(_message(1, _number(1, size)) for size in shape)
    tensor = _number(1, _CODES[dtype.newbyteorder("<")]) + _message(2, dims)
    return _text(1, name) + _message(2, _message(1, tensor))


def _read_node(data: memoryview) -> Node:
    node = Node("", [], [], raw=data)
    for number, _, value in read_fields(data):
        if number == 1:
            node.inputs.append(str(_bytes(value), "utf-8"))
        elif number == 2:
            node.outputs.append(str(_bytes(value), "utf-8"))
        elif number == 4:
            node.op_type = str(_bytes(value), "utf-8")
        elif number == 7:
            node.domain = str(_bytes(value), "utf-8")
        elif number == 5:
            _read_attribute(node, _bytes(value))
    return node


def _read_attribute(node: Node, data: memoryview) -> None:
    name, ints = "", []
    scalar: int | float | str = 0
    kind = 0
    for number, wire, value in read_fields(data):
        if number == 1:
            name = str(_bytes(value), "utf-8")
        elif number == 2:
            scalar = floats_of(wire, value)[0]
        elif number == 3 and isinstance(value, int):
            scalar = signed(value)
        elif number == 4:
            scalar = str(_bytes(value), "utf-8", "replace")
        elif number == 8:
            ints += varints_of(wire, value)
        elif number == 20 and isinstance(value, int):
            kind = value
        elif number in (6, 11):
            node.has_graph = True
    if kind == 3 and scalar == 0:
        scalar = ""
    node.attributes[name] = ints if ints or kind == _INTS else scalar


def _read_initializer(data: memoryview) -> Initializer:
    name, code = "", 0
    dims: list[int] = []
    for number, kind, value in read_fields(data):
        if number == 1:
            dims += varints_of(kind, value)
        elif number == 2 and isinstance(value, int):
            code = value
        elif number == 8:
            name = str(_bytes(value), "utf-8")
    return Initializer(name, _DTYPES.get(code), tuple(dims), data)


def _read_value_info(data: memoryview) -> tuple[str, tuple[int, ...]]:
    """Name and shape; a size that is not a number is 0."""
    name = ""
    shape: list[int] = []
    for number, _, value in read_fields(data):
        if number == 1:
            name = str(_bytes(value), "utf-8")
        elif number == 2:
            for _, body in _within(_bytes(value), 1):
                for _, dims in _within(body, 2):
                    for _, dim in _within(dims, 1):
                        sizes = [v for n, _, v in read_fields(dim) if n == 1]
                        shape.append(sizes[0] if sizes and isinstance(sizes[0], int) else 0)
    return name, tuple(shape)


def _within(data: memoryview, wanted: int) -> Iterator[tuple[int, memoryview]]:
    for number, _, value in read_fields(data):
        if number == wanted:
            yield number, _bytes(value)
