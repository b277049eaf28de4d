"""Just enough D-Bus to ask systemd for a scope: one connection, method calls, signals.

Rule: marshalling is pure and typed by signature; the connection knows nothing of systemd. Types: ``y b n q i u x t d
s o g v``, arrays, structs and dictionaries. Source: the D-Bus specification, chapters "Message Format" and
"Authentication Protocol".
"""

from __future__ import annotations

import socket
import struct

from runc_py.errors import RuntimeFailure
from runc_py.light import TYPE_CHECKING, NamedTuple, os

if TYPE_CHECKING:
    from typing import Any

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE = range(1, 9)
_FIELD_TYPES = {PATH: "o", INTERFACE: "s", MEMBER: "s", DESTINATION: "s", SIGNATURE: "g"}
_FIXED = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d"}
_ALIGNMENT = {"y": 1, "n": 2, "q": 2, "g": 1, "v": 1, "x": 8, "t": 8, "d": 8, "(": 8, "{": 8}
SECONDS = 30.0


class BusError(RuntimeFailure):
    """The bus, or the service asked, said no."""


class Variant(NamedTuple):
    """A value with its type."""

    signature: str
    value: Any


class Message(NamedTuple):
    """An incoming message."""

    kind: int
    fields: dict[int, Any]
    body: tuple[Any, ...]


def split_signature(signature: str) -> list[str]:
    """The complete types that make up a signature."""
    found = []
    while signature:
        end = _end_of_type(signature)
        found.append(signature[:end])
        signature = signature[end:]
    return found


def _end_of_type(signature: str) -> int:
    first = signature[0]
    if first == "a":
        return 1 + _end_of_type(signature[1:])
    if first in "({":
        depth = 0
        for index, character in enumerate(signature):
            depth += (character in "({") - (character in ")}")
            if depth == 0:
                return index + 1
        raise ValueError(f"D-Bus signature {signature!r} is not closed")
    return 1


class Writer:
    """Bytes of values, little-endian, aligned from the start of the buffer."""

    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, size: int) -> None:
        """Pad to a multiple of ``size``."""
        self.data += b"\0" * (-len(self.data) % size)

    def write(self, kind: str, value: Any) -> None:
        """One complete type."""
        first = kind[0]
        self.align(_ALIGNMENT.get(first, 4))
        if first in _FIXED:
            self.data += struct.pack(f"<{_FIXED[first]}", value)
        elif first == "b":
            self.data += struct.pack("<I", bool(value))
        elif first in "so":
            encoded = value.encode()
            self.data += struct.pack("<I", len(encoded)) + encoded + b"\0"
        elif first == "g":
            self.data += struct.pack("<B", len(value)) + value.encode() + b"\0"
        elif first == "v":
            self.write("g", value.signature)
            self.write(value.signature, value.value)
        elif first == "a":
            self._array(kind[1:], value)
        else:
            for one, part in zip(split_signature(kind[1:-1]), value, strict=True):
                self.write(one, part)

    def _array(self, kind: str, values: Any) -> None:
        at = len(self.data)
        self.data += b"\0\0\0\0"
        self.align(_ALIGNMENT.get(kind[0], 4))
        start = len(self.data)
        for value in values:
            self.write(kind, value)
        struct.pack_into("<I", self.data, at, len(self.data) - start)


class Reader:
    """Values of a message; ``order`` is ``<`` or ``>``."""

    def __init__(self, data: bytes, order: str = "<") -> None:
        self._data = data
        self._order = order
        self.position = 0

    def align(self, size: int) -> None:
        """Skip padding."""
        self.position += -self.position % size

    def read(self, kind: str) -> Any:
        """One complete type."""
        first = kind[0]
        self.align(_ALIGNMENT.get(first, 4))
        if first in _FIXED:
            return self._unpack(_FIXED[first])
        if first == "b":
            return bool(self._unpack("I"))
        if first in "sog":
            return self._text(self._unpack("B" if first == "g" else "I"))
        if first == "v":
            signature = self.read("g")
            return Variant(signature, self.read(signature))
        if first == "a":
            return self._array(kind[1:])
        return tuple(self.read(one) for one in split_signature(kind[1:-1]))

    def _unpack(self, code: str) -> Any:
        (value,) = struct.unpack_from(self._order + code, self._data, self.position)
        self.position += struct.calcsize(code)
        return value

    def _text(self, length: int) -> str:
        text = self._data[self.position : self.position + length].decode()
        self.position += length + 1
        return text

    def _array(self, kind: str) -> list[Any]:
        length = self._unpack("I")
        self.align(_ALIGNMENT.get(kind[0], 4))
        end = self.position + length
        values = []
        while self.position < end:
            values.append(self.read(kind))
        return values


def encode_call(serial: int, fields: dict[int, str], signature: str, body: tuple[Any, ...]) -> bytes:
    """A method call as it goes over the wire."""
    payload = Writer()
    for kind, value in zip(split_signature(signature), body, strict=True):
        payload.write(kind, value)
    present = {**fields, SIGNATURE: signature} if signature else fields
    header = Writer()
    for value in (ord("l"), CALL, 0, 1):
        header.write("y", value)
    header.write("u", len(payload.data))
    header.write("u", serial)
    header.write("a(yv)", [(code, Variant(_FIELD_TYPES[code], text)) for code, text in present.items() if text])
    header.align(8)
    return bytes(header.data + payload.data)


class Connection:
    """A connection to a bus, or straight to a service (``peer``), which has no names and no Hello."""

    def __init__(self, path: str, *, peer: bool) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(SECONDS)
        self._serial = 0
        self._peer = peer
        self._waiting: list[Message] = []
        try:
            self._socket.connect(path)
            self._authenticate()
            if not peer:
                self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
        except OSError as error:
            self._socket.close()
            raise BusError(f"D-Bus: cannot talk to {path}: {error.strerror or error}") from error

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _authenticate(self) -> None:
        identity = str(os.geteuid()).encode().hex().encode()
        # BEGIN goes out before the answer is read: a systemd that finds a message right behind it in one read waits for
        # more and never looks at it (sd-bus itself sends it like this).
        self._socket.sendall(b"\0AUTH EXTERNAL " + identity + b"\r\nBEGIN\r\n")
        answer = b""
        while not answer.endswith(b"\r\n"):
            data = self._socket.recv(1)
            if not data:
                break
            answer += data
        if not answer.startswith(b"OK"):
            raise BusError(f"D-Bus: not let in as user {os.geteuid()}: {answer.decode(errors='replace').strip()}")

    def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> tuple[Any, ...]:
        """Call a method; its return values. Raises BusError with the error's name and text."""
        self._serial += 1
        serial = self._serial
        fields = {PATH: path, INTERFACE: interface, MEMBER: member}
        if not self._peer:
            fields[DESTINATION] = destination
        self._socket.sendall(encode_call(serial, fields, signature, body))
        while True:
            message = self._receive()
            if message.fields.get(REPLY_SERIAL) != serial:
                self._waiting.append(message)
            elif message.kind == ERROR:
                text = message.body[0] if message.body else ""
                raise BusError(f"{member}: {message.fields.get(ERROR_NAME)}: {text}")
            else:
                return message.body

    def next_signal(self) -> Message:
        """The next signal, also one that came while a call was waiting for its answer."""
        while True:
            message = self._waiting.pop(0) if self._waiting else self._receive()
            if message.kind == SIGNAL:
                return message

    def _receive(self) -> Message:
        try:
            start = self._read(16)
            order = "<" if start[:1] == b"l" else ">"
            length, _, fields_length = struct.unpack_from(f"{order}III", start, 4)
            header = start + self._read(fields_length + (-fields_length % 8))
            reader = Reader(header, order)
            reader.position = 12
            fields = {code: value.value for code, value in reader.read("a(yv)")}
            body = Reader(self._read(length), order)
        except TimeoutError:
            raise BusError(f"D-Bus: no answer in {SECONDS:g} s") from None
        values = tuple(body.read(kind) for kind in split_signature(fields.get(SIGNATURE, "")))
        return Message(start[1], fields, values)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self._socket.recv(size - len(data))
            if not chunk:
                raise BusError("D-Bus: the connection was closed")
            data += chunk
        return data
