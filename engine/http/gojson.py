"""JSON bodies as Go's ``encoding/json`` reads them, which is what clients of Docker's API were written against.

Rule: a key matches its field in any case, null is the same as absent, and in a map null is the value's zero. Source:
https://pkg.go.dev/encoding/json#Unmarshal.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

T = TypeVar("T")

_LISTS = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)
_ZEROS: dict[type, Any] = {inspect.StrType: "", inspect.IntType: 0, inspect.FloatType: 0.0, inspect.BoolType: False}


def decode(raw: bytes | str, kind: type[T]) -> T:
    """``raw`` as ``kind``. Raises ``msgspec.DecodeError`` naming the JSON path."""
    return convert(msgspec.json.decode(raw), kind)


def convert(value: Any, kind: type[T]) -> T:
    """Decoded JSON as ``kind``. Raises ``msgspec.ValidationError`` naming the JSON path."""
    return msgspec.convert(folded(value, kind), kind, strict=False)


def folded(value: Any, kind: Any) -> Any:
    """``value`` with the keys that ``kind`` names, and without nulls."""
    return _fold(value, _described(kind))


@functools.cache
def _described(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


@functools.cache
def _fields(kind: type) -> tuple[dict[str, inspect.Type], dict[str, str]]:
    """Types of a struct's fields by JSON name, and the JSON names by their lower case."""
    described = _described(kind)
    assert isinstance(described, inspect.StructType)
    types = {field.encode_name: field.type for field in described.fields}
    return types, {name.lower(): name for name in types}


def _fold(value: Any, kind: inspect.Type) -> Any:
    if isinstance(kind, inspect.UnionType):
        return _fold(value, _member(value, kind))
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        return _fold_struct(value, kind.cls)
    if isinstance(kind, inspect.DictType) and isinstance(value, dict):
        return {key: _zero(kind.value_type) if v is None else _fold(v, kind.value_type) for key, v in value.items()}
    if isinstance(kind, _LISTS) and isinstance(value, list):
        return [_zero(kind.item_type) if v is None else _fold(v, kind.item_type) for v in value]
    return value


def _fold_struct(value: dict[str, Any], kind: type) -> dict[str, Any]:
    types, names = _fields(kind)
    out: dict[str, Any] = {}
    for key, item in value.items():
        name = key if key in types else names.get(key.lower())
        if name is not None and item is not None and (name == key or name not in value):
            out[name] = _fold(item, types[name])
    return out


def _member(value: Any, kind: inspect.UnionType) -> inspect.Type:
    """The alternative of a union that fits the shape of ``value``."""
    wanted: tuple[type, ...] = (inspect.StructType, inspect.DictType) if isinstance(value, dict) else _LISTS
    return next((member for member in kind.types if isinstance(member, wanted)), inspect.AnyType())


def _zero(kind: inspect.Type) -> Any:
    if isinstance(kind, inspect.UnionType):
        return None if kind.includes_none else _zero(kind.types[0])
    if isinstance(kind, (inspect.StructType, inspect.DictType)):
        return {}
    return [] if isinstance(kind, _LISTS) else _ZEROS.get(type(kind))
