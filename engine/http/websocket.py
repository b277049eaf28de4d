"""WebSocket framing of a hijacked connection (RFC 6455), for ``GET /containers/{id}/attach/ws``.

Rule: the parser knows no sockets: bytes go in, payloads and control frames come out. No extension is ever agreed to.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from engine.http.messages import Duplex
from oci.errors import InvalidArgument

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MAX_PAYLOAD = 16 << 20


class Frame(NamedTuple):
    """One frame: ``opcode`` and the unmasked payload."""

    opcode: int
    payload: bytes


def accept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The answer's headers for a client's opening handshake. Raises ``InvalidArgument`` when it is none."""
    key = headers.get("sec-websocket-key", "")
    if headers.get("upgrade", "").lower() != "websocket" or not key:
        raise InvalidArgument("not a WebSocket request: Upgrade: websocket and Sec-WebSocket-Key are needed")
    if headers.get("sec-websocket-version") != "13":
        raise InvalidArgument("unsupported WebSocket version: 13 is the one there is")
    digest = hashlib.sha1(f"{key}{GUID}".encode(), usedforsecurity=False).digest()
    return {"Sec-WebSocket-Accept": base64.b64encode(digest).decode()}


def encode(opcode: int, payload: bytes) -> bytes:
    """A whole, unmasked frame, as servers send them."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big")
    return head + payload


class Parser:
    """Client frames out of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes. Raises ``ConnectionError`` for what no client may send."""
        self._buffer += data
        found = []
        while (frame := self._next()) is not None:
            found.append(frame)
        return found

    def _next(self) -> Frame | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, at = buffer[1] & 0x7F, 2
        if not buffer[1] & 0x80:
            raise ConnectionAbortedError("WebSocket: an unmasked frame from a client")
        if size >= 126:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(buffer[2 : 2 + width], "big"), 2 + width
        if size > MAX_PAYLOAD:
            raise ConnectionAbortedError(f"WebSocket: a frame of {size} bytes")
        if len(buffer) < at + 4 + size:
            return None
        payload = _unmasked(bytes(buffer[at + 4 : at + 4 + size]), bytes(buffer[at : at + 4]))
        opcode = buffer[0] & 0x0F
        del buffer[: at + 4 + size]
        return Frame(opcode, payload)


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


class WebSocket:
    """A ``Duplex`` whose bytes travel in messages; ``skip`` bytes at the head of each write are not sent."""

    def __init__(self, duplex: Duplex, *, skip: int = 0) -> None:
        self._duplex = duplex
        self._skip = skip
        self._parser = Parser()
        self._pending = b""
        self._ended = False
        self._closed = False

    async def read(self, limit: int = 65536) -> bytes:
        """Payload bytes; ``b""`` once the client has said close or is gone."""
        while not self._pending and not self._ended:
            data = await self._duplex.read()
            self._ended = not data
            for frame in self._parser.feed(data):
                await self._take(frame)
        head, self._pending = self._pending[:limit], self._pending[limit:]
        return head

    async def _take(self, frame: Frame) -> None:
        if frame.opcode in (CONTINUATION, TEXT, BINARY):
            self._pending += frame.payload
        elif frame.opcode == PING:
            await self._duplex.write(encode(PONG, frame.payload))
        elif frame.opcode == CLOSE:
            self._ended = True

    async def write(self, data: bytes) -> None:
        """One binary message."""
        await self._duplex.write(encode(BINARY, data[self._skip :]))

    async def write_eof(self) -> None:
        """Say close, with the status for a normal end."""
        if not self._closed:
            self._closed = True
            await self._duplex.write(encode(CLOSE, (1000).to_bytes(2, "big")))

    async def close(self) -> None:
        """Say close and end the connection. Idempotent."""
        with contextlib.suppress(ConnectionError):
            await self.write_eof()
        await self._duplex.close()
