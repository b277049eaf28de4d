"""The HTTP/2 client of sessions, against a scripted server's bytes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import hpack
import pytest

from engine.buildkit import http2
from engine.buildkit.http2 import Connection, frame
from oci.errors import NotFound, Unavailable
from protos.buildkit.secrets_pb2 import GetSecretRequest, GetSecretResponse

METHOD = "/service/Method"


class Wire:
    """A connection whose other end is the test: ``feed`` what the server says, ``frames`` are ours."""

    def __init__(self) -> None:
        self._incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self._sent = bytearray()
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()

    async def read(self, limit: int = 65536) -> bytes:
        return await self._incoming.get()

    async def write(self, data: bytes) -> None:
        self._sent += data

    async def write_eof(self) -> None: ...

    async def close(self) -> None: ...

    def feed(self, data: bytes) -> None:
        self._incoming.put_nowait(data)

    def headers(self, stream: int, *pairs: tuple[str, str], last: bool = False) -> bytes:
        flags = http2.END_HEADERS | (http2.END_STREAM if last else 0)
        return frame(http2.HEADERS, flags, stream, self.encoder.encode(list(pairs)))

    async def frames(self, kind: int, count: int = 1) -> list[tuple[int, int, bytes]]:
        """Our first ``count`` frames of a kind: (flags, stream, payload)."""
        for _ in range(200):
            found = [f[1:] for f in self._parsed() if f[0] == kind]
            if len(found) >= count:
                return found
            await asyncio.sleep(0)
        raise AssertionError(f"no {count} frames of kind {kind}: {self._parsed()}")

    def _parsed(self) -> list[tuple[int, int, int, bytes]]:
        data, found = bytes(self._sent), []
        assert data.startswith(http2.PREFACE) or not data
        at = len(http2.PREFACE)
        while at < len(data):
            size = int.from_bytes(data[at : at + 3], "big")
            kind, flags, stream = struct.unpack_from(">BBI", data, at + 3)
            found.append((kind, flags, stream, data[at + 9 : at + 9 + size]))
            at += 9 + size
        return found


def message(data: bytes) -> bytes:
    return struct.pack(">BI", 0, len(data)) + data


def play(script: Callable[[Wire, Connection], Awaitable[None]]) -> None:
    """Run ``script`` beside a connection, then end it."""

    async def run() -> None:
        wire = Wire()
        connection = Connection(wire)
        serving = asyncio.create_task(connection.serve())
        async with asyncio.timeout(10):
            await script(wire, connection)
            wire.feed(b"")
            await serving

    asyncio.run(run())


def test_a_question_and_its_answer_in_any_pieces() -> None:
    async def script(wire: Wire, connection: Connection) -> None:
        asked = asyncio.create_task(connection.ask(METHOD, GetSecretRequest(ID="x"), GetSecretResponse))
        ((flags, stream, block),) = await wire.frames(http2.HEADERS)
        assert flags == http2.END_HEADERS and stream == 1
        headers: Any = dict(wire.decoder.decode(block))
        assert headers[":path"] == METHOD
        data = await wire.frames(http2.DATA, 2)
        assert data[0][2] == message(GetSecretRequest(ID="x").SerializeToString())
        assert data[1][0] == http2.END_STREAM
        answer = message(GetSecretResponse(data=b"hush").SerializeToString())
        said = wire.headers(1, (":status", "200"), ("content-type", "application/grpc"))
        said += frame(http2.DATA, 0, 1, answer[:3]) + frame(http2.DATA, http2.PADDED, 1, b"\x02" + answer[3:] + b"\0\0")
        said += wire.headers(1, ("grpc-status", "0"), last=True)
        for at in range(0, len(said), 7):
            wire.feed(said[at : at + 7])
        assert (await asked).data == b"hush"

    play(script)


def test_a_status_becomes_an_error_of_ours() -> None:
    async def script(wire: Wire, connection: Connection) -> None:
        asked = asyncio.create_task(connection.ask(METHOD, GetSecretRequest(), GetSecretResponse))
        await wire.frames(http2.DATA, 2)
        wire.feed(wire.headers(1, (":status", "200"), ("grpc-status", "5"), ("grpc-message", "no%20x"), last=True))
        with pytest.raises(NotFound, match="no x"):
            await asked

    play(script)


def test_a_lost_connection_ends_calls_and_refuses_more() -> None:
    async def script(wire: Wire, connection: Connection) -> None:
        call = connection.call(METHOD)
        wire.feed(b"")
        with pytest.raises(Unavailable, match="gone"):
            await call.read()
        with pytest.raises(Unavailable):
            connection.call(METHOD)

    play(script)


def test_no_more_is_sent_than_the_peer_takes() -> None:
    async def script(wire: Wire, connection: Connection) -> None:
        wire.feed(frame(http2.SETTINGS, 0, 0, struct.pack(">HI", http2.INITIAL_WINDOW, 10)))
        await wire.frames(http2.SETTINGS, 2)
        call = connection.call(METHOD)
        writing = asyncio.create_task(call.write(b"0123456789"))
        ((_, _, first),) = await wire.frames(http2.DATA)
        assert first == message(b"0123456789")[:10] and not writing.done()
        wire.feed(frame(http2.WINDOW, 0, 1, struct.pack(">I", 100)))
        await writing
        assert b"".join(f[2] for f in await wire.frames(http2.DATA, 2)) == message(b"0123456789")
        call.cancel()
        assert (await wire.frames(http2.RESET))[0] == (0, 1, struct.pack(">I", http2.CANCEL))

    play(script)


def test_room_is_given_back_when_messages_are_read_and_pings_are_answered() -> None:
    async def script(wire: Wire, connection: Connection) -> None:
        call = connection.call(METHOD)
        wire.feed(frame(http2.DATA, 0, 1, message(b"a" * 95)) + frame(http2.PING, 0, 0, b"12345678"))
        assert (await wire.frames(http2.PING))[0] == (http2.ACK, 0, b"12345678")
        assert len(await wire.frames(http2.WINDOW)) == 1
        assert await call.read() == [b"a" * 95]
        assert (await wire.frames(http2.WINDOW, 2))[1] == (0, 1, struct.pack(">I", 100))
        call.cancel()

    play(script)
