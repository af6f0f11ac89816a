"""JSON as dataclasses of plain values: whatever a file says, reading it gives a complete object or an error."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

_R = TypeVar("_R")


def typed(kind: Any, value: Any) -> Any:
    """`value` of JSON as `kind`, an annotation of a dataclass of plain values. A field with a default may be missing.
    Raises KeyError, TypeError or ValueError."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind), value)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else typed(next(a for a in inner if a is not type(None)), value)
    if origin is list and isinstance(value, list):
        return [typed(inner[0], item) for item in value]
    if origin is dict and isinstance(value, Mapping):
        return {str(key): typed(inner[1], item) for key, item in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise TypeError(f"{str(value)[:40]!r} is no {getattr(kind, '__name__', kind)}")


def _dataclass(kind: type[_R], value: Any) -> _R:
    if not isinstance(value, Mapping):
        raise TypeError(f"{str(value)[:40]!r} is no object")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind))}
    unknown = value.keys() - fields.keys()
    missing = [name for name, f in fields.items() if name not in value and _needed(f)]
    if missing or unknown:
        raise KeyError(missing[0] if missing else next(iter(unknown)))
    return kind(**{name: typed(hints[name], value[name]) for name in fields if name in value})


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
