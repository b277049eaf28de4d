"""The attach socket: its two JSON lines and Docker's stream frames.

Rule: nothing here touches a socket; shim and engine share these functions. See "Attach socket" in docs/internals.md.
"""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

STDIN, STDOUT, STDERR = 0, 1, 2
HEADER_SIZE = 8
MAX_LINE = 4096
FROM_NOW = -1

_HEADER = struct.Struct(">BxxxI")


class HandshakeError(ValueError):
    """The peer's JSON line is malformed, or is an error."""


class AttachRequest(NamedTuple):
    """What a client wants. Offsets are into the raw log; ``FROM_NOW`` skips what was written before."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    raw: bool = False
    stdout_offset: int = FROM_NOW
    stderr_offset: int = FROM_NOW


class AttachReply(NamedTuple):
    """The offsets that the streams begin at."""

    stdout_offset: int
    stderr_offset: int


def encode_request(request: AttachRequest) -> bytes:
    """The client's line, with its newline."""
    return json.dumps(request._asdict(), separators=(",", ":")).encode() + b"\n"


def decode_request(line: bytes) -> AttachRequest:
    """The request in a client's line. Raises ``HandshakeError``."""
    values = _json_object(line)
    flags = [values.get(name, False) for name in AttachRequest._fields[:4]]
    offsets = [values.get(name, FROM_NOW) for name in AttachRequest._fields[4:]]
    if not all(type(flag) is bool for flag in flags) or not all(type(offset) is int for offset in offsets):
        raise HandshakeError(f"attach request with a value of the wrong type: {line[:200]!r}")
    return AttachRequest(*flags, *offsets)


def encode_reply(reply: AttachReply) -> bytes:
    """The server's line, with its newline."""
    return json.dumps(reply._asdict(), separators=(",", ":")).encode() + b"\n"


def encode_error(message: str) -> bytes:
    """The server's line when it refuses."""
    return json.dumps({"error": message}).encode() + b"\n"


def decode_reply(line: bytes) -> AttachReply:
    """The reply in a server's line. Raises ``HandshakeError``, also for the server's own error."""
    values = _json_object(line)
    if "error" in values:
        raise HandshakeError(str(values["error"]))
    try:
        return AttachReply(int(values["stdout_offset"]), int(values["stderr_offset"]))
    except (KeyError, TypeError, ValueError) as error:
        raise HandshakeError(f"attach reply {line!r}: {error!r}") from None


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        raise HandshakeError(f"attach handshake is not JSON: {line[:80]!r}") from None
    if not isinstance(values, dict):
        raise HandshakeError(f"attach handshake is not an object: {line[:80]!r}")
    return values


def frame_header(stream: int, length: int) -> bytes:
    """Docker's 8-byte header before ``length`` bytes of ``stream`` (1 or 2)."""
    return _HEADER.pack(stream, length)


class FrameDecoder:
    """Bytes of a framed attach connection in, ``(stream, payload)`` out; payloads come as far as they have arrived."""

    __slots__ = ("_head", "_left", "_stream")

    def __init__(self) -> None:
        self._head = bytearray()
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The payload pieces in ``data``, in order; a frame may come in several pieces."""
        pieces: list[tuple[int, bytes]] = []
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                pieces.append((self._stream, piece))
                self._left -= len(piece)
                at += len(piece)
                continue
            missing = HEADER_SIZE - len(self._head)
            self._head += data[at : at + missing]
            at += missing
            if len(self._head) == HEADER_SIZE:
                self._stream, self._left = _HEADER.unpack(self._head)
                self._head.clear()
        return pieces
