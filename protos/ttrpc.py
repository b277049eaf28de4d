"""ttrpc without a socket: frames and the messages inside them.

Rule: nothing here reads, writes or waits. A peer feeds received bytes to ``Decoder`` and sends what the ``encode_*``
functions return, so the same code serves the shim's ``selectors`` loop and asyncio. Source: containerd/ttrpc
PROTOCOL.md (10-byte header: u32 length, u32 stream id, u8 type, u8 flags, big-endian; at most 4 MiB of data).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from protos.wire import Field, Message, Values, WireError

REQUEST, RESPONSE, DATA = 1, 2, 3
REMOTE_CLOSED, REMOTE_OPEN, NO_DATA = 1, 2, 4
MAX_DATA = 4 << 20
HEADER_SIZE = 10

NAMESPACE_KEY = "containerd-namespace-ttrpc"
"""The metadata key that names containerd's namespace."""

LATER = ("gantry-durability", "later")
"""Metadata of a call to a supervisor of ours: its change need not be on disk before the answer, for the caller can tell
anew all that it tells (docs/internals.md). Others do not know it and wait."""

ONTO = "gantry-onto"
"""Metadata key of ``Diff`` for a supervisor of ours: ``SNAPSHOTTER/KEY`` of an active snapshot that gets the changes as
well, while they are written. The descriptor that is answered has an annotation of that name then; others' has none."""

_HEADER = struct.Struct(">IIBB")

_KEY_VALUE = Message("ttrpc.KeyValue", Field(1, "key", "string"), Field(2, "value", "string"))
_ANY = Message("google.protobuf.Any", Field(1, "type_url", "string"), Field(2, "value", "bytes"))
STATUS = Message(
    "google.rpc.Status",
    Field(1, "code", "int32"),
    Field(2, "message", "string"),
    Field(3, "details", _ANY, repeated=True),
)
REQUEST_MESSAGE = Message(
    "ttrpc.Request",
    Field(1, "service", "string"),
    Field(2, "method", "string"),
    Field(3, "payload", "bytes"),
    Field(4, "timeout_nano", "int64"),
    Field(5, "metadata", _KEY_VALUE, repeated=True),
)
RESPONSE_MESSAGE = Message("ttrpc.Response", Field(1, "status", STATUS), Field(2, "payload", "bytes"))


class ProtocolError(ValueError):
    """The peer broke the protocol; the connection cannot be used any further."""


class Frame(NamedTuple):
    """One message on the wire. Stream ids of calls are odd."""

    stream_id: int
    kind: int
    flags: int
    data: bytes


class Request(NamedTuple):
    """A call: ``payload`` is the encoded request message, ``timeout_nano`` 0 for none."""

    service: str
    method: str
    payload: bytes
    timeout_nano: int
    metadata: dict[str, str]


class Response(NamedTuple):
    """An answer: ``code`` 0 is success, others are gRPC's numbers and come with ``message``."""

    code: int
    message: str
    payload: bytes


class Decoder:
    """Bytes in, frames out."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """All frames that ``data`` completes. Raises ``ProtocolError`` for a frame over 4 MiB."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        at, available = 0, len(buffer)
        while available - at >= HEADER_SIZE:
            length, stream_id, kind, flags = _HEADER.unpack_from(buffer, at)
            if length > MAX_DATA:
                raise ProtocolError(f"ttrpc frame of {length} bytes on stream {stream_id}: the limit is {MAX_DATA}")
            end = at + HEADER_SIZE + length
            if end > available:
                break
            frames.append(Frame(stream_id, kind, flags, bytes(buffer[at + HEADER_SIZE : end])))
            at = end
        if at:
            del buffer[:at]
        return frames

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame: not zero at end of file means that the peer was cut off."""
        return len(self._buffer)


def encode_frame(frame: Frame) -> bytes:
    """The frame's bytes. Raises ``ProtocolError`` when its data is over 4 MiB."""
    if len(frame.data) > MAX_DATA:
        raise ProtocolError(f"ttrpc frame of {len(frame.data)} bytes: the limit is {MAX_DATA}")
    return _HEADER.pack(len(frame.data), frame.stream_id, frame.kind, frame.flags) + frame.data


def encode_request(
    stream_id: int,
    service: str,
    method: str,
    payload: bytes,
    metadata: Mapping[str, str] | None = None,
    timeout_nano: int = 0,
) -> bytes:
    """A unary call ready to be sent; ``service`` is the full name (``containerd.task.v2.Task``)."""
    pairs: list[Values] = [{"key": key, "value": value} for key, value in (metadata or {}).items()]
    body = REQUEST_MESSAGE.encode(
        {
            "service": service,
            "method": method,
            "payload": payload,
            "timeout_nano": timeout_nano,
            "metadata": pairs,
        }
    )
    return encode_frame(Frame(stream_id, REQUEST, 0, body))


def decode_request(frame: Frame) -> Request:
    """The call inside a REQUEST frame. Raises ``ProtocolError`` when it is malformed."""
    try:
        values = REQUEST_MESSAGE.decode(frame.data)
    except WireError as error:
        raise ProtocolError(f"malformed ttrpc request on stream {frame.stream_id}: {error}") from error
    metadata = {pair["key"]: pair["value"] for pair in values["metadata"]}
    return Request(values["service"], values["method"], values["payload"], values["timeout_nano"], metadata)


def encode_response(stream_id: int, payload: bytes) -> bytes:
    """A successful answer ready to be sent."""
    return encode_frame(Frame(stream_id, RESPONSE, 0, RESPONSE_MESSAGE.encode({"payload": payload})))


def encode_error(stream_id: int, code: int, message: str) -> bytes:
    """A failed answer; ``code`` is one of ``oci.errors.Code``."""
    status: Values = {"code": int(code), "message": message}
    return encode_frame(Frame(stream_id, RESPONSE, 0, RESPONSE_MESSAGE.encode({"status": status})))


def decode_response(frame: Frame) -> Response:
    """The answer inside a RESPONSE frame. Raises ``ProtocolError`` when it is malformed."""
    try:
        values = RESPONSE_MESSAGE.decode(frame.data)
    except WireError as error:
        raise ProtocolError(f"malformed ttrpc response on stream {frame.stream_id}: {error}") from error
    status = values["status"]
    if status is None:
        return Response(0, "", values["payload"])
    return Response(status["code"], status["message"], values["payload"])
