"""A small protobuf wire codec for processes that cannot afford google.protobuf.

Rule: a message is a plain ``dict`` of its field names, a message *type* is a table (``Message``) made once at import.
Decoding fills every field (scalars with their zero, repeated with ``[]``, maps with ``{}``, absent messages with
``None``), skips unknown fields, and raises ``WireError`` on bytes that are no message. Encoding leaves out zeros, as
proto3 does, in the order of the table. Source: protobuf.dev "Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Values = dict[str, Any]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MASK64 = (1 << 64) - 1
_DOUBLE = struct.Struct("<d")


class WireError(ValueError):
    """The bytes are not a protobuf message, or a value does not fit its field."""


def _put_varint(out: bytearray, value: int) -> None:
    """Append ``value`` (0 ≤ value < 2**64)."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _get_varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at ``at`` and the offset behind it."""
    value = shift = 0
    while shift < 70:
        try:
            byte = data[at]
        except IndexError:
            raise WireError("truncated varint") from None
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, at
        shift += 7
    raise WireError("varint longer than ten bytes")


class _Kind(NamedTuple):
    """How one scalar type travels: wire type, zero value, value → bytes appended, raw wire value → value."""

    wire: int
    zero: Any
    put: Callable[[bytearray, Any], None]
    get: Callable[[Any], Any]


def _put_integer(low: int, high: int) -> Callable[[bytearray, Any], None]:
    def put(out: bytearray, value: Any) -> None:
        if not low <= value <= high:
            raise WireError(f"{value} does not fit in {low}..{high}")
        _put_varint(out, int(value) & _MASK64)

    return put


def _put_bytes(out: bytearray, value: Any) -> None:
    _put_varint(out, len(value))
    out += value


def _put_string(out: bytearray, value: Any) -> None:
    _put_bytes(out, value.encode())


def _put_double(out: bytearray, value: Any) -> None:
    out += _DOUBLE.pack(value)


def _signed(bits: int) -> Callable[[Any], Any]:
    top, modulus = 1 << (bits - 1), 1 << bits

    def get(raw: Any) -> Any:
        raw &= modulus - 1
        return raw - modulus if raw >= top else raw

    return get


def _get_string(raw: Any) -> Any:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"string field is not UTF-8: {error}") from None


def _get_double(raw: Any) -> Any:
    return _DOUBLE.unpack(raw)[0]


_KINDS: dict[str, _Kind] = {
    "string": _Kind(_LENGTH, "", _put_string, _get_string),
    "bytes": _Kind(_LENGTH, b"", _put_bytes, bytes),
    "bool": _Kind(_VARINT, False, _put_integer(0, 1), bool),
    "uint32": _Kind(_VARINT, 0, _put_integer(0, (1 << 32) - 1), lambda raw: raw & 0xFFFFFFFF),
    "uint64": _Kind(_VARINT, 0, _put_integer(0, _MASK64), lambda raw: raw),
    "int32": _Kind(_VARINT, 0, _put_integer(-(1 << 31), (1 << 31) - 1), _signed(32)),
    "enum": _Kind(_VARINT, 0, _put_integer(-(1 << 31), (1 << 31) - 1), _signed(32)),
    "int64": _Kind(_VARINT, 0, _put_integer(-(1 << 63), (1 << 63) - 1), _signed(64)),
    "double": _Kind(_FIXED64, 0.0, _put_double, _get_double),
}


class Field(NamedTuple):
    """One field: its number, name, and kind (a scalar's name such as ``uint32``, or a ``Message``)."""

    number: int
    name: str
    kind: str | Message
    repeated: bool = False
    is_map: bool = False


def map_field(number: int, name: str, value: str | Message) -> Field:
    """A ``map<string, value>`` field."""
    entry = Message(f"{name}.entry", Field(1, "key", "string"), Field(2, "value", value))
    return Field(number, name, entry, repeated=True, is_map=True)


class _Slot:
    """A field made ready: everything encode and decode look up per value."""

    __slots__ = ("is_map", "kind", "message", "name", "packed_tag", "repeated", "tag", "wire")

    def __init__(self, field: Field) -> None:
        self.name = field.name
        self.repeated = field.repeated
        self.is_map = field.is_map
        self.message = field.kind if isinstance(field.kind, Message) else None
        self.kind = _message_kind(field.kind) if isinstance(field.kind, Message) else _KINDS[field.kind]
        self.wire = self.kind.wire
        tag = bytearray()
        _put_varint(tag, field.number << 3 | self.wire)
        self.tag = bytes(tag)
        packed = bytearray()
        _put_varint(packed, field.number << 3 | _LENGTH)
        self.packed_tag = bytes(packed) if field.repeated and self.wire != _LENGTH else None

    def absent(self) -> Any:
        """What a message that lacks this field has."""
        if self.is_map:
            return {}
        if self.repeated:
            return []
        return self.kind.zero

    def put(self, out: bytearray, value: Any) -> None:
        """Append the field holding ``value``; nothing for its zero."""
        if not self.repeated:
            if value is not None and (value or self.message is not None):
                out += self.tag
                self.kind.put(out, value)
        elif self.packed_tag is not None:
            if value:
                body = bytearray()
                for item in value:
                    self.kind.put(body, item)
                out += self.packed_tag
                _put_bytes(out, body)
        elif self.is_map:
            for key, item in value.items():
                out += self.tag
                self.kind.put(out, {"key": key, "value": item})
        else:
            for item in value:
                out += self.tag
                self.kind.put(out, item)

    def take(self, into: Values, wire: int, raw: Any) -> None:
        """Store a decoded occurrence; an occurrence of another wire type is an unknown field and skipped."""
        if wire != self.wire:
            if wire == _LENGTH and self.packed_tag is not None:
                into[self.name].extend(self.kind.get(item) for item in _unpack(raw, self.wire))
            return
        value = self.kind.get(raw)
        if self.is_map:
            empty = {} if value["value"] is None else value["value"]
            into[self.name][value["key"]] = empty
        elif self.repeated:
            into[self.name].append(value)
        else:
            into[self.name] = value


def _message_kind(message: Message) -> _Kind:
    def put(out: bytearray, value: Any) -> None:
        _put_bytes(out, message.encode(value))

    return _Kind(_LENGTH, None, put, message.decode)


def _unpack(raw: bytes, wire: int) -> list[Any]:
    """The items of a packed repeated field."""
    items: list[Any] = []
    at = 0
    while at < len(raw):
        item, at = _raw_value(raw, at, wire)
        items.append(item)
    return items


def _raw_value(data: bytes, at: int, wire: int) -> tuple[Any, int]:
    """The undecoded value of wire type ``wire`` at ``at``, and the offset behind it."""
    if wire == _VARINT:
        return _get_varint(data, at)
    if wire == _LENGTH:
        size, at = _get_varint(data, at)
    elif wire == _FIXED64:
        size = 8
    elif wire == _FIXED32:
        size = 4
    else:
        raise WireError(f"wire type {wire} is not part of proto3")
    end = at + size
    if end > len(data):
        raise WireError("truncated field")
    return data[at:end], end


class Message:
    """A message type: its full protobuf name and its fields."""

    __slots__ = ("_by_number", "_slots", "fields", "name")

    def __init__(self, name: str, *fields: Field) -> None:
        self.name = name
        self.fields = fields
        self._slots = [_Slot(field) for field in fields]
        self._by_number = {field.number: slot for field, slot in zip(fields, self._slots, strict=True)}

    def encode(self, values: Mapping[str, Any]) -> bytes:
        """The message's bytes. Raises ``WireError`` for a name that is no field or a value that does not fit."""
        out = bytearray()
        used = 0
        for slot in self._slots:
            if slot.name in values:
                used += 1
                slot.put(out, values[slot.name])
        if used != len(values):
            unknown = set(values) - {slot.name for slot in self._slots}
            raise WireError(f"{self.name} has no field {', '.join(sorted(unknown))}")
        return bytes(out)

    def decode(self, data: bytes) -> Values:
        """Every field of the message in ``data``. Raises ``WireError`` on malformed bytes."""
        values: Values = {slot.name: slot.absent() for slot in self._slots}
        at, end = 0, len(data)
        while at < end:
            tag, at = _get_varint(data, at)
            raw, at = _raw_value(data, at, tag & 7)
            number = tag >> 3
            if number == 0:
                raise WireError("field number 0")
            slot = self._by_number.get(number)
            if slot is not None:
                slot.take(values, tag & 7, raw)
        return values
