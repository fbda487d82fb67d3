"""The protobuf wire format, as much of it as ONNX files need.

A message is a sequence of (field number, wire type, value). Every length is checked against the
bytes that are there, so a damaged file gives an error, never a huge allocation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .errors import OnnxFileError

__all__ = ["Value", "floats_of", "read_fields", "signed", "varints_of"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Value = int | memoryview


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise OnnxFileError("the file ends inside a number; the copy may be cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise OnnxFileError("a number is longer than 64 bits; this is not an ONNX file")
            return value, at
        shift += 7
        if shift > 63:
            raise OnnxFileError("a number is longer than 64 bits; this is not an ONNX file")


def read_fields(data: memoryview) -> Iterator[tuple[int, int, Value]]:
    """Yield (field number, wire type, value): an unsigned int, or a view of the bytes.

    Raises:
        OnnxFileError: truncated, or not a protobuf message.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise OnnxFileError("field number 0; this is not an ONNX file")
        value: Value
        if kind == VARINT:
            value, at = _varint(data, at)
        else:
            if kind == BYTES:
                size, at = _varint(data, at)
            elif kind in (FIXED32, FIXED64):
                size = 4 if kind == FIXED32 else 8
            else:
                raise OnnxFileError(f"unknown wire type {kind}; this is not an ONNX file")
            if size > len(data) - at:
                raise OnnxFileError(
                    f"expected {size} bytes in field {number}, {len(data) - at} are left; the copy "
                    "may be cut short"
                )
            value = data[at : at + size]
            at += size
        yield number, kind, value


def signed(value: int) -> int:
    """A varint as int64."""
    return value - (1 << 64) if value >> 63 else value


def varints_of(kind: int, value: Value) -> list[int]:
    """One entry of a repeated int64 field, packed or not."""
    if isinstance(value, int):
        return [signed(value)]
    if kind != BYTES:
        raise OnnxFileError("a list of integers is stored as fixed-size numbers")
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(signed(number))
    return numbers


def floats_of(kind: int, value: Value) -> list[float]:
    """One entry of a repeated float field, packed or not."""
    if isinstance(value, int) or kind == FIXED64 or len(value) % 4:
        raise OnnxFileError("a list of floats does not consist of 4-byte numbers")
    return [number for (number,) in struct.iter_unpack("<f", value)]
