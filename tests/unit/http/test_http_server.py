"""The HTTP server against raw bytes: what odd clients send, and what dockerd's clients rely on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.http.messages import Answer, Duplex, Hijack, Request, Response, json_response
from engine.http.router import Route, Router
from engine.http.server import Connection
from oci.errors import NotFound

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Handlers:
    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def echo(self, request: Request) -> Answer:
        return json_response({"path": request.path, "body": (await request.body()).decode()})

    async def missing(self, request: Request) -> Answer:
        raise NotFound("No such container: x")

    async def hijack(self, request: Request) -> Answer:
        async def run(duplex: Duplex) -> None:
            while data := await duplex.read():
                await duplex.write(data.upper())
            await duplex.write(b"EOF")

        return Hijack(run)

    async def slow(self, request: Request) -> Answer:
        await asyncio.sleep(0.05)
        return json_response("late")

    async def forever(self, request: Request) -> Answer:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return Response()


async def serve(handlers: Handlers, path: str) -> asyncio.Server:
    routes = [
        Route("GET", "/echo", handlers.echo),
        Route("HEAD", "/echo", handlers.echo),
        Route("POST", "/echo", handlers.echo),
        Route("GET", "/missing", handlers.missing),
        Route("POST", "/hijack", handlers.hijack),
        Route("GET", "/slow", handlers.slow),
        Route("GET", "/forever", handlers.forever),
    ]

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(Router(routes), reader, writer).serve()

    return await asyncio.start_unix_server(accept, path)


async def answer(reader: asyncio.StreamReader, *, head: bool = False) -> tuple[str, dict[str, str], bytes]:
    lines = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode().split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
    body = b"" if head else await reader.readexactly(int(headers.get("content-length", 0)))
    return lines[0], headers, body


async def exchange(path: str, handlers: Handlers) -> AsyncIterator[Streams]:
    server = await serve(handlers, path)
    reader, writer = await asyncio.open_unix_connection(path)
    yield reader, writer
    writer.close()
    server.close()


def run(tmp_path: Path, *steps: object) -> None:
    """``steps``: bytes are sent, callables get the reader."""

    async def go() -> None:
        async for reader, writer in exchange(str(tmp_path / "s"), Handlers()):
            for step in steps:
                if isinstance(step, bytes):
                    writer.write(step)
                elif step is None:
                    writer.write_eof()
                else:
                    await asyncio.wait_for(step(reader), 5)  # type: ignore[operator]  # steps are given as objects

    asyncio.run(go())


async def is_echo(reader: asyncio.StreamReader, body: str = "") -> None:
    status, _, text = await answer(reader)
    assert status == "HTTP/1.1 200 "
    assert json.loads(text)["body"] == body


def expects(body: str) -> object:
    async def check(reader: asyncio.StreamReader) -> None:
        await is_echo(reader, body)

    return check


def test_bare_line_feeds(tmp_path: Path) -> None:
    run(tmp_path, b"GET /echo HTTP/1.1\nHost: x\n\n", expects(""))


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    two = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none" * 2
    run(tmp_path, two, expects("one"), expects("one"))


@pytest.mark.parametrize("extra", [b"\n", b"\r\n"])
def test_a_line_break_too_many_behind_a_body(tmp_path: Path, extra: bytes) -> None:
    post = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none"
    run(tmp_path, post + extra, expects("one"), post + extra, expects("one"), extra, post, expects("one"))


def test_half_closed_client_gets_its_answer(tmp_path: Path) -> None:
    async def late(reader: asyncio.StreamReader) -> None:
        status, _, body = await answer(reader)
        assert (status, body) == ("HTTP/1.1 200 ", b'"late"')

    run(tmp_path, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", None, late)


def test_continue_is_sent_when_expected(tmp_path: Path) -> None:
    async def interim(reader: asyncio.StreamReader) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")

    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    run(tmp_path, head, interim, b"ok", expects("ok"))


def test_head_and_close(tmp_path: Path) -> None:
    async def bodiless(reader: asyncio.StreamReader) -> None:
        status, headers, _ = await answer(reader, head=True)
        assert status == "HTTP/1.1 200 "
        assert headers["connection"] == "close"
        assert await reader.read() == b""

    run(tmp_path, b"HEAD /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", bodiless)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [(b"GET /missing", "404"), (b"GET /nosuch", "404"), (b"PUT /echo", "405"), (b"GET /v9.99/echo", "400")],
)
def test_errors_are_json(tmp_path: Path, request_line: bytes, status: str) -> None:
    async def refused(reader: asyncio.StreamReader) -> None:
        first, headers, body = await answer(reader)
        assert first.split()[1] == status
        assert headers["content-type"] == "application/json"
        assert json.loads(body)["message"]

    run(tmp_path, request_line + b" HTTP/1.1\r\nHost: x\r\n\r\n", refused)


def test_hijack_takes_pipelined_bytes_and_half_close(tmp_path: Path) -> None:
    async def upgraded(reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
        assert await reader.readexactly(5) == b"EARLY"

    async def ended(reader: asyncio.StreamReader) -> None:
        assert await reader.read() == b"LATEEOF"

    head = b"POST /hijack HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly"
    run(tmp_path, head, upgraded, b"late", None, ended)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_declared_body_is_no_input_of_a_hijack(tmp_path: Path, at_once: bool) -> None:
    async def upgraded(reader: asyncio.StreamReader) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(5) == b"INPUT"

    async def pause(reader: asyncio.StreamReader) -> None:
        await asyncio.sleep(0.05)

    head = b"POST /hijack HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 8\r\n\r\n"
    steps = (head + b'{"a": 1}input',) if at_once else (head, pause, b'{"a": 1}', pause, b"input")
    run(tmp_path, *steps, upgraded)


def test_a_client_that_is_gone_cancels_its_handler(tmp_path: Path) -> None:
    async def go() -> None:
        handlers = Handlers()
        async for _, writer in exchange(str(tmp_path / "s"), handlers):
            writer.write(b"GET /forever HTTP/1.1\r\nHost: x\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.close()
            await asyncio.wait_for(handlers.cancelled.wait(), 5)

    asyncio.run(go())


def test_a_body_nobody_reads_does_not_cost_the_connection(tmp_path: Path) -> None:
    """dockerode sends its options as a body as well, and keeps its connections."""
    unread = b"GET /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n"
    post = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none"

    async def late(reader: asyncio.StreamReader) -> None:
        assert (await answer(reader))[2] == b'"late"'

    run(tmp_path, unread, late, b'{"t":0}', post, expects("one"))
