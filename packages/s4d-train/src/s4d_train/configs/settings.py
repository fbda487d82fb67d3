"""Typed settings: dataclasses from and to plain dictionaries, and `key=value` overrides.

An unknown key, a value of the wrong type or an unknown choice is a `ConfigError` that names the
nearest thing that exists.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: Sequence[str], where: str = "") -> str:
    """A hint for an unknown `name` of the group `where`: the nearest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{_join(where, close[0])}'?"
    return f"known are {', '.join(sorted(known))}."


def to_dict(settings: Any) -> Any:
    """Plain dictionaries, lists and numbers, fit for JSON."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_dict(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {str(key): to_dict(value) for key, value in settings.items()}
    if isinstance(settings, tuple | list):
        return [to_dict(value) for value in settings]
    return settings


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A `kind` of nested dictionaries; what is not given keeps its default."""
    hints = get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    made = {}
    for key, value in values.items():
        if key not in names:
            hint = nearest(key, names, where)
            raise ConfigError(f"there is no setting '{_join(where, key)}'; {hint}")
        made[key] = coerce(value, hints[key], _join(where, key))
    missing = [
        f.name
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.name not in made
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        needed = ", ".join(f"'{_join(where, name)}'" for name in missing)
        raise ConfigError(f"the settings are incomplete: {needed} must be given.")
    return kind(**made)


def override(settings: T, pairs: Sequence[str]) -> T:
    """`settings` with each `dotted.key=value` of `pairs` applied, in order.

    Raises:
        ConfigError: no such key (the nearest one is named), or a value of another type.
    """
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise ConfigError(f"an override is written key=value; got '{pair}'.")
        known = _all_names(settings)
        settings = _set(settings, key.strip().split("."), text.strip(), "", known)
    return settings


def _all_names(settings: Any, where: str = "") -> list[str]:
    """Dotted names of all values in `settings`."""
    found = []
    for f in dataclasses.fields(settings):
        name, value = _join(where, f.name), getattr(settings, f.name)
        found += _all_names(value, name) if dataclasses.is_dataclass(value) else [name]
    return found


def _nearest_name(name: str, known: Sequence[str]) -> str:
    """A hint for an unknown dotted `name`: one like it, or one whose last part is like its last."""
    if difflib.get_close_matches(name, known, n=1, cutoff=0.7):
        return nearest(name, known)
    places = {dotted.rpartition(".")[2]: dotted for dotted in reversed(known)}
    close = difflib.get_close_matches(name.rpartition(".")[2], list(places), n=1, cutoff=0.6)
    if close:
        return f"did you mean '{places[close[0]]}'?"
    return "s4d-train fit CONFIG --show lists all settings."


def _set(settings: T, path: list[str], text: str, where: str, known: Sequence[str]) -> T:
    name, rest = path[0], path[1:]
    here = _join(where, name)
    if not dataclasses.is_dataclass(settings):
        raise ConfigError(f"setting '{where}' is a value and has no part '{name}'.")
    names = [f.name for f in dataclasses.fields(settings)]
    if name not in names:
        whole = _join(where, ".".join(path))
        raise ConfigError(f"there is no setting '{whole}'; {_nearest_name(whole, known)}")
    old = getattr(settings, name)
    if rest:
        new = _set(old, rest, text, here, known)
    elif dataclasses.is_dataclass(old):
        inside = ", ".join(f.name for f in dataclasses.fields(old))
        raise ConfigError(f"setting '{here}' is a group; set one of its parts: {inside}.")
    else:
        new = coerce(_literal(text), get_type_hints(type(settings))[name], here, text)
    return dataclasses.replace(settings, **{name: new})  # type: ignore[type-var,return-value]


def coerce(value: Any, hint: Any, where: str, text: str | None = None) -> Any:
    """`value` as the type `hint`, or a `ConfigError` that names the setting `where`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if isinstance(value, Mapping):
            return from_dict(hint, value, where)  # type: ignore[arg-type]
    elif origin is Literal:
        if value in arguments:
            return value
        choice = nearest(str(value), [str(a) for a in arguments])
        raise ConfigError(f"setting '{where}' does not know '{value}'; {choice}")
    elif origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for argument in arguments:
            if argument is not type(None):
                return coerce(value, argument, where, text)
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(coerce(v, k, where) for v, k in zip(value, kinds, strict=True))
    elif origin is dict and isinstance(value, Mapping):
        return {
            coerce(_literal(str(k)), arguments[0], where): coerce(v, arguments[1], where)
            for k, v in value.items()
        }
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is str:
        if isinstance(value, str):
            return value
        if text is not None:
            return text
    raise ConfigError(f"setting '{where}' needs {_name(hint)}; got {value!r}.")


def _literal(text: str) -> Any:
    lowered = text.lower()
    if lowered in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(lowered)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint)
