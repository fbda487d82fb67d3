"""Frozen dataclasses to and from plain JSON data, strictly.

An unknown field is an error that names the nearest known one; so is a value of another type. No
value is coerced except int to float and list to tuple, the two losses of a trip through JSON.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import ConfigError

__all__ = ["from_plain", "nearest_name", "to_plain"]

T = TypeVar("T")


def nearest_name(name: str, known: typing.Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name most like `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def to_plain(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists, the rest as it is: ready for `json.dumps`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return value


def from_plain(cls: type[T], data: Any, where: str = "config") -> T:
    """Build dataclass `cls` from the result of `to_plain` or of `json.loads`.

    Args:
        cls: a dataclass. Fields may be scalars, `Literal`, tuples, other dataclasses, a union
            of those with None, or a union of dataclasses that a field `kind` tells apart.
        data: a mapping with the fields' names as keys. Fields with defaults may be absent.
        where: how error messages name this object.

    Raises:
        ConfigError: unknown or missing field, wrong type, or what `cls.__post_init__` refuses.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a mapping of fields, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in data:
        if name not in fields:
            hint = nearest_name(str(name), fields)
            raise ConfigError(f"{where}: unknown field {name!r}{hint}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in data:
            raise ConfigError(f"{where}: field {name!r} is missing")
    values = {name: _convert(hints[name], data[name], f"{where}.{name}") for name in data}
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [arg for arg in args if arg is not type(None)]
        return _convert(_chosen(rest, value, where) if len(rest) > 1 else rest[0], value, where)
    if origin is typing.Literal:
        if value not in args:
            choices = ", ".join(repr(arg) for arg in args)
            raise ConfigError(
                f"{where}: expected one of {choices}, got {value!r}"
                + nearest_name(str(value), [str(arg) for arg in args])
            )
        return value
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if dataclasses.is_dataclass(hint):
        return (
            value
            if isinstance(value, typing.cast(type, hint))
            else from_plain(typing.cast(type, hint), value, where)
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _chosen(classes: list[Any], value: Any, where: str) -> Any:
    """Which of several dataclasses `value` is: by its field `kind`, the first one without it."""
    if type(value) in classes:
        return type(value)
    kinds: dict[str, Any] = {_kind(c): c for c in classes}
    kind = value.get("kind", next(iter(kinds))) if isinstance(value, Mapping) else next(iter(kinds))
    if kind not in kinds:
        raise ConfigError(
            f"{where}.kind: expected one of {', '.join(map(repr, kinds))}, got {kind!r}"
            + nearest_name(str(kind), kinds)
        )
    return kinds[kind]


def _kind(cls: Any) -> str:
    return next(str(f.default) for f in dataclasses.fields(cls) if f.name == "kind")


def _convert_tuple(args: tuple, value: Any, where: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {value!r}")
    if len(args) == 2 and args[1] is Ellipsis:
        hints: list[Any] = [args[0]] * len(value)
    else:
        hints = list(args)
    if len(hints) != len(value):
        raise ConfigError(f"{where}: expected {len(hints)} values, got {len(value)}")
    return tuple(
        _convert(hint, item, f"{where}[{i}]")
        for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    )
