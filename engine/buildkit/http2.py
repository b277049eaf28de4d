"""HTTP/2 as far as a gRPC client needs it, on a connection that a client has handed to us.

Rule: a message costs what its bytes cost. (gRPC's own library takes a tenth of a millisecond for each, and a build
context is tens of thousands of messages.) Source: RFC 9113, RFC 7541, grpc ``doc/PROTOCOL-HTTP2.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

import hpack

from engine.http.messages import Duplex
from oci.errors import GantryError, Internal, Unavailable, from_code

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
NO_PUSH, INITIAL_WINDOW, MAX_FRAME = 2, 4, 5
DEFAULT_WINDOW = 65535
FRAME_SIZE = 16384
STREAM_WINDOW, CONNECTION_WINDOW = 8 << 20, 32 << 20
CANCEL = 8
READ = 1 << 18
UNAVAILABLE, UNKNOWN = 14, 2

_HEAD = struct.Struct(">HBBBI")
_LONG = struct.Struct(">I")
_PREFIX = struct.Struct(">BI")


class Message(Protocol):
    """A protobuf message."""

    def SerializeToString(self) -> bytes: ...


M = TypeVar("M")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


class Call:
    """One gRPC call: messages out, messages in, a status."""

    def __init__(self, connection: Connection, number: int, window: int) -> None:
        self._connection = connection
        self.number = number
        self.window = window
        self.error: GantryError | None = None
        self.over = False
        self._half_closed = False
        self._waiting: deque[bytes] = deque()
        self._partial = bytearray()
        self._unread = 0
        self.changed = asyncio.Event()

    async def write(self, message: bytes) -> None:
        """Send one message; waits while the peer takes no more. Raises the call's error when it is over."""
        data = memoryview(_PREFIX.pack(0, len(message)) + message)
        while data:
            room = await self._connection.room(self, len(data))
            self._connection.push(frame(DATA, 0, self.number, bytes(data[:room])))
            data = data[room:]

    def done_writing(self) -> None:
        """No more messages of ours."""
        if not self._half_closed and not self.over:
            self._half_closed = True
            self._connection.push(frame(DATA, END_STREAM, self.number, b""))

    async def read(self) -> list[bytes]:
        """All messages that are here, at least one; empty at the end. Raises the call's error."""
        while not self._waiting:
            if self.over:
                if self.error is not None:
                    raise self.error
                return []
            self.changed.clear()
            await self.changed.wait()
        found = list(self._waiting)
        self._waiting.clear()
        self._connection.taken(self, self._unread)
        self._unread = 0
        return found

    async def only(self, kind: type[M]) -> M:
        """The answer of a call that has one."""
        found = await self.read()
        if not found:
            raise Internal("a call was answered with nothing")
        decode: Any = kind
        message: M = decode.FromString(found[0])
        await self.read()
        return message

    def cancel(self) -> None:
        """Give the call up. Idempotent."""
        if not self.over:
            self.end(None)
            self._connection.reset(self)

    def received(self, data: bytes | memoryview) -> None:
        """Bytes of messages have come."""
        self._unread += len(data)
        partial = self._partial
        partial += data
        at, size = 0, len(partial)
        while size - at >= _PREFIX.size:
            packed, length = _PREFIX.unpack_from(partial, at)
            if packed:
                self.end(Internal("a compressed message, which was not asked for"))
                return
            if size - at - _PREFIX.size < length:
                break
            at += _PREFIX.size
            self._waiting.append(bytes(partial[at : at + length]))
            at += length
        if at:
            del partial[:at]
            self.changed.set()

    def end(self, error: GantryError | None) -> None:
        """Nothing more comes."""
        if not self.over:
            self.over, self.error = True, error
            self.changed.set()


class Connection:
    """The client's end of one connection. ``serve`` runs as long as it lasts."""

    def __init__(self, duplex: Duplex) -> None:
        self._duplex = duplex
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._calls: dict[int, Call] = {}
        self._next = 1
        self._window = DEFAULT_WINDOW
        self._peer_stream_window = DEFAULT_WINDOW
        self._room = asyncio.Condition()
        self._unacknowledged = 0
        self._block = bytearray()
        self._block_flags = 0
        self._outgoing: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self.closed = False
        settings = struct.pack(">HIHI", NO_PUSH, 0, INITIAL_WINDOW, STREAM_WINDOW)
        self.push(PREFACE + frame(SETTINGS, 0, 0, settings))
        self.push(frame(WINDOW, 0, 0, _LONG.pack(CONNECTION_WINDOW - DEFAULT_WINDOW)))

    async def serve(self) -> None:
        """Speak until either side ends it."""
        writer = asyncio.create_task(self._write())
        try:
            await self._read()
        except (ConnectionError, ValueError, struct.error, hpack.HPACKError):
            # What is not HTTP/2 ends as a connection that broke.
            pass
        finally:
            self.closed = True
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            for call in list(self._calls.values()):
                call.end(Unavailable("the client is gone"))
            self._calls.clear()
            async with self._room:
                self._room.notify_all()

    def call(self, method: str, metadata: Iterable[tuple[str, str]] = ()) -> Call:
        """Begin a call of ``/service/method``. Raises ``Unavailable`` when the connection is gone."""
        if self.closed:
            raise Unavailable("the client is gone")
        call = Call(self, self._next, self._peer_stream_window)
        self._next += 2
        self._calls[call.number] = call
        headers = [
            (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "localhost"),
            ("te", "trailers"), ("content-type", "application/grpc"), *metadata,
        ]  # fmt: skip
        block = self._encoder.encode(headers)
        kind, pieces = HEADERS, [block[at : at + FRAME_SIZE] for at in range(0, len(block), FRAME_SIZE)]
        for number, piece in enumerate(pieces, 1):
            self.push(frame(kind, END_HEADERS if number == len(pieces) else 0, call.number, piece))
            kind = CONTINUATION
        return call

    async def ask(self, method: str, request: Message, answer: type[M]) -> M:
        """A call with one message each way."""
        call = self.call(method)
        try:
            await call.write(request.SerializeToString())
            call.done_writing()
            return await call.only(answer)
        finally:
            call.cancel()

    def reset(self, call: Call) -> None:
        """The call is given up."""
        if self._calls.pop(call.number, None) is not None and not self.closed:
            self.push(frame(RESET, 0, call.number, _LONG.pack(CANCEL)))

    async def room(self, call: Call, wanted: int) -> int:
        """How many bytes the peer takes now, at least one and at most ``wanted``; they count as sent."""
        async with self._room:
            await self._room.wait_for(lambda: call.over or (call.window > 0 and self._window > 0))
            if call.over:
                raise call.error or Unavailable("the call is over")
            size = min(wanted, call.window, self._window, FRAME_SIZE)
            call.window -= size
            self._window -= size
            return size

    def taken(self, call: Call, size: int) -> None:
        """``size`` bytes were read: the peer may send as many again."""
        if size and not call.over:
            self.push(frame(WINDOW, 0, call.number, _LONG.pack(size)))

    def push(self, data: bytes) -> None:
        """Put ``data`` on its way, in order; how much can wait is bounded by the peer's windows."""
        self._outgoing.append(data)
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._outgoing:
                data = b"".join(self._outgoing)
                self._outgoing.clear()
                with contextlib.suppress(ConnectionError):
                    await self._duplex.write(data)

    async def _read(self) -> None:
        buffer = bytearray()
        while data := await self._duplex.read(READ):
            buffer += data
            at, size = 0, len(buffer)
            view = memoryview(buffer)
            while size - at >= _HEAD.size:
                high, low, kind, flags, stream = _HEAD.unpack_from(buffer, at)
                length = high << 8 | low
                if size - at - _HEAD.size < length:
                    break
                at += _HEAD.size
                stream &= 0x7FFFFFFF
                if kind == DATA:
                    self._data(stream, flags, view[at : at + length])
                else:
                    await self._control(kind, flags, stream, bytes(view[at : at + length]))
                at += length
            view.release()
            del buffer[:at]

    def _data(self, stream: int, flags: int, payload: memoryview) -> None:
        # What is received counts for the connection when it comes, for its stream when it is read.
        self._unacknowledged += len(payload)
        if self._unacknowledged > CONNECTION_WINDOW // 2:
            self.push(frame(WINDOW, 0, 0, _LONG.pack(self._unacknowledged)))
            self._unacknowledged = 0
        call = self._calls.get(stream)
        if call is None:
            return
        call.received(_unpadded(flags, payload))
        if flags & END_STREAM:
            self._end(call, Internal("a call ended without a status"))

    async def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (HEADERS, CONTINUATION):
            if kind == HEADERS:
                self._block_flags = flags
                payload = bytes(_unpadded(flags, memoryview(payload)))
                self._block[:] = payload[5:] if flags & PRIORITY else payload
            else:
                self._block += payload
            if flags & END_HEADERS:
                self._headers(stream)
                await self._widen(-1, 0)
        elif kind == SETTINGS and not flags & ACK:
            await self._settings(payload)
        elif kind == PING and not flags & ACK:
            self.push(frame(PING, ACK, 0, payload))
        elif kind == WINDOW:
            await self._widen(stream, _LONG.unpack(payload)[0] & 0x7FFFFFFF)
        elif kind == RESET and stream in self._calls:
            self._end(self._calls[stream], Unavailable("the client ended the call"))
            await self._widen(stream, 0)
        elif kind == GOAWAY:
            raise ConnectionError("the client goes away")

    async def _settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            name, value = struct.unpack_from(">HI", payload, at)
            if name == INITIAL_WINDOW:
                change = value - self._peer_stream_window
                self._peer_stream_window = value
                for call in self._calls.values():
                    call.window += change
        self.push(frame(SETTINGS, ACK, 0, b""))
        await self._widen(-1, 0)

    async def _widen(self, stream: int, size: int) -> None:
        if stream == 0:
            self._window += size
        elif stream in self._calls:
            self._calls[stream].window += size
        async with self._room:
            self._room.notify_all()

    def _headers(self, stream: int) -> None:
        # The table of the decoder counts every block, whether somebody waits for it or not.
        decoded: Any = self._decoder.decode(bytes(self._block))
        headers: dict[str, str] = dict(decoded)
        call = self._calls.get(stream)
        if call is None:
            return
        if headers.get(":status", "200") != "200":
            self._end(call, Unavailable(f"the client answered with HTTP status {headers[':status']}"))
        elif self._block_flags & END_STREAM:
            code = int(headers.get("grpc-status", UNKNOWN))
            self._end(call, from_code(code, unquote(headers.get("grpc-message", ""))) if code else None)

    def _end(self, call: Call, error: GantryError | None) -> None:
        self._calls.pop(call.number, None)
        call.end(error)


def _unpadded(flags: int, payload: memoryview) -> memoryview:
    return payload[1 : len(payload) - payload[0]] if flags & PADDED else payload
