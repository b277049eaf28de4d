"""The HTTP/1.1 server: sans-IO h11 between asyncio streams and the handlers.

Rule: the connection belongs to one task. While a handler runs, a watcher reads ahead: bytes are kept for the next
request or the hijack, end of file cancels the handler, as Go's net/http does for dockerd.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import select
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import h11
import structlog

from engine.http.errors import HttpError, body_of, status_of
from engine.http.listeners import Listener
from engine.http.messages import JSON, Answer, Hijack, Request, Response, parse_query
from engine.http.router import API_VERSION, Router, split_version, version_text
from engine.http.tls import TlsStream
from oci.errors import GantryError
from oci.version import __version__

log = structlog.get_logger()

READ_SIZE = 1 << 16
MAX_HEAD = 1 << 17
"""Bytes of request line and headers; X-Registry-Config can be long."""

DRAIN_BYTES = 256 << 10
"""How much of a body nobody wanted is read to keep a connection, as much as Go's server reads."""

LINGER_SECONDS, LINGER_BYTES = 5.0, 256 << 20
"""How long, and how much of a request's body nobody wants any more, is read after the answer."""

COMMON_HEADERS = (
    ("Api-Version", version_text(API_VERSION)),
    ("Docker-Experimental", "false"),
    ("Ostype", "linux"),
    ("Server", f"Gantry/{__version__} (linux)"),
)


Reader = asyncio.StreamReader | TlsStream
Writer = asyncio.StreamWriter | TlsStream


class _StreamDuplex:
    """A hijacked connection over asyncio streams."""

    def __init__(self, reader: Reader, writer: Writer, early: bytes, eof: bool) -> None:
        self._reader, self._writer, self._early, self._eof = reader, writer, early, eof

    async def read(self, limit: int = READ_SIZE) -> bytes:
        if self._early:
            head, self._early = self._early[:limit], self._early[limit:]
            return head
        return b"" if self._eof else await self._reader.read(limit)

    async def write(self, data: bytes) -> None:
        if self._writer.transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        if self._writer.can_write_eof() and not self._writer.transport.is_closing():
            with contextlib.suppress(OSError):
                self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Connection:
    """One client connection, from the first request to the last byte."""

    def __init__(self, router: Router, reader: Reader, writer: Writer) -> None:
        self._router = router
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._eof = False

    async def serve(self) -> None:
        """Answer requests until the client or an error ends the connection."""
        try:
            while await self._serve_one():
                self._next_cycle()
        except (ConnectionError, h11.RemoteProtocolError, TimeoutError) as error:
            await self._refuse(error)
        finally:
            self._writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._writer.wait_closed()

    def _next_cycle(self) -> None:
        """Ready for another request. Old clients send a line break too many behind a body (RFC 9112, 2.2)."""
        early = bytes(self._http.trailing_data[0]).lstrip(b"\r\n")
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        if early:
            self._http.receive_data(early)

    async def _refuse(self, error: Exception) -> None:
        if isinstance(error, h11.RemoteProtocolError) and self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = body_of(HttpError(400, f"malformed HTTP request: {error}"))
            head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n"
            with contextlib.suppress(OSError):
                self._writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
                await self._writer.drain()

    async def _hung_up(self) -> None:
        """Wait until a client that sends no more also reads no more: half-closed connections get their answer."""
        connection = self._writer.get_extra_info("socket") if isinstance(self._writer, asyncio.StreamWriter) else None
        if connection is None or connection.fileno() < 0:
            return
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        with select.epoll() as poll:
            # Errors and hang-ups are reported even though nothing is asked for.
            poll.register(connection.fileno(), 0)
            loop.add_reader(poll.fileno(), gone.set)
            try:
                await gone.wait()
            finally:
                loop.remove_reader(poll.fileno())

    async def _receive(self) -> None:
        data = b"" if self._eof else await self._reader.read(READ_SIZE)
        self._eof = not data
        if data and self._http.their_state is h11.IDLE and not self._http.trailing_data[0]:
            data = data.lstrip(b"\r\n")
            if not data:
                return
        self._http.receive_data(data)

    async def _event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            await self._receive()
        return event

    async def _send(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        if self._writer.transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._writer.write(data)
        await self._writer.drain()

    async def _serve_one(self) -> bool:
        """Serve one request; whether the connection can carry another."""
        event = await self._event()
        if not isinstance(event, h11.Request):
            return False
        watcher: asyncio.Task[None] | None = None
        handler_task = asyncio.current_task()
        assert handler_task is not None

        async def watch() -> None:
            while not self._eof:
                reset = False
                try:
                    data = await self._reader.read(READ_SIZE)
                except ConnectionError:
                    data, reset = b"", True
                if not data:
                    self._eof = True
                    if not reset:
                        await self._hung_up()
                    handler_task.cancel("client disconnected")
                    return
                self._http.receive_data(data)

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal watcher
            while watcher is None:
                part = await self._event()
                if isinstance(part, h11.Data):
                    yield bytes(part.data)
                elif isinstance(part, h11.EndOfMessage):
                    watcher = asyncio.create_task(watch())
                else:
                    raise ConnectionResetError("the client went away inside its request body")

        body = chunks()
        if b"chunked" not in _header(event, b"transfer-encoding") and _header(event, b"content-length") in (b"", b"0"):
            async for _ in body:
                pass
        try:
            answer = await self._answer(event, body)
            if isinstance(answer, Hijack):
                await self._drop(watcher)
                await self._skip_body(event)
                await self._hijack(event, answer)
                return False
            waits = self._http.they_are_waiting_for_100_continue
            await self._respond(event, answer)
            if self._http.their_state is h11.SEND_BODY:
                await self._finish_body(waits)
        except asyncio.CancelledError:
            if self._eof and handler_task.cancelling() == 1:
                handler_task.uncancel()
                return False
            raise
        finally:
            await self._drop(watcher)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE and not self._eof

    async def _skip_body(self, event: h11.Request) -> None:
        """What a hijacking request declared as its body is no input: dockerode says its options there once more."""
        if _header(event, b"content-length") not in (b"", b"0") and self._http.their_state is h11.SEND_BODY:
            await self._read_body(DRAIN_BYTES)

    async def _finish_body(self, waits: bool) -> None:
        """Read the rest of a small body that no handler wanted: then the connection can carry another request."""
        if await self._read_body(0 if waits else DRAIN_BYTES) and self._http.their_state is h11.SEND_BODY:
            await self._linger()

    async def _read_body(self, left: int) -> bool:
        """Read up to ``left`` bytes of the request's body, for a few seconds; False when the client went away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while left > 0 and self._http.their_state is h11.SEND_BODY:
                    event = await self._event()
                    left -= len(event.data) if isinstance(event, h11.Data) else 0
                    if isinstance(event, h11.ConnectionClosed):
                        return False
        return True

    async def _linger(self) -> None:
        """Let a client that still sends read its answer first: closing now would reset the connection under it."""
        left = LINGER_BYTES
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(LINGER_SECONDS):
                while left > 0 and (data := await self._reader.read(READ_SIZE)):
                    left -= len(data)

    @staticmethod
    async def _drop(watcher: asyncio.Task[None] | None) -> None:
        if watcher is not None and not watcher.done():
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _answer(self, event: h11.Request, body: AsyncIterator[bytes]) -> Answer:
        raw_path, _, raw_query = event.target.decode("latin-1").partition("?")
        method = event.method.decode("ascii")
        try:
            version, path = split_version(raw_path)
            route, params = self._router.find(method, path)
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in event.headers}
            request = Request(method, path, parse_query(raw_query), headers, version, body, params)
            return await route.handler(request)
        except Exception as error:
            status = status_of(error)
            if status >= 500 and not isinstance(error, (GantryError, HttpError)):
                log.exception("request failed", method=method, path=raw_path)
            else:
                log.debug("request refused", method=method, path=raw_path, status=status, error=str(error))
            text = body_of(error)
            return Response(status, text, {"Content-Type": JSON} if text else {})

    async def _respond(self, event: h11.Request, answer: Response) -> None:
        headers = [*COMMON_HEADERS, *answer.headers.items()]
        is_head = event.method == b"HEAD"
        if isinstance(answer.body, bytes):
            if answer.status not in (204, 304) and not (is_head and "Content-Length" in answer.headers):
                headers.append(("Content-Length", str(len(answer.body))))
            parts = [self._http.send(h11.Response(status_code=answer.status, headers=headers))]
            if answer.body and not is_head:
                parts.append(self._http.send(h11.Data(data=answer.body)))
            parts.append(self._http.send(h11.EndOfMessage()))
            await self._write(b"".join(part for part in parts if part))
        else:
            if "Content-Length" not in answer.headers and event.http_version != b"1.0":
                headers.append(("Transfer-Encoding", "chunked"))
            await self._send(h11.Response(status_code=answer.status, headers=headers))
            try:
                async for chunk in answer.body:
                    if chunk and not is_head:
                        await self._send(h11.Data(data=chunk))
            finally:
                close: Callable[[], Coroutine[Any, Any, None]] | None = getattr(answer.body, "aclose", None)
                if close is not None:
                    await close()
            await self._send(h11.EndOfMessage())

    async def _hijack(self, event: h11.Request, answer: Hijack) -> None:
        early = bytes(self._http.trailing_data[0])
        if _header(event, b"content-length") not in (b"", b"0"):
            # Jenkins' docker plugin sends a line break behind the body, which is no input to the process.
            early = early.removeprefix(b"\r").removeprefix(b"\n")
        common = "".join(f"{k}: {v}\r\n" for k, v in (*COMMON_HEADERS, *answer.headers.items()))
        upgrade = _header(event, b"upgrade").decode("latin-1")
        if upgrade:
            head = f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {answer.content_type}\r\nConnection: Upgrade\r\n"
            head += f"Upgrade: {upgrade}\r\n{common}\r\n"
        else:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {answer.content_type}\r\n{common}\r\n"
        duplex = _StreamDuplex(self._reader, self._writer, early, self._eof)
        await duplex.write(head.encode("latin-1"))
        try:
            await answer.run(duplex)
        except ConnectionError:
            log.debug("hijacked connection lost", target=event.target)
        finally:
            await duplex.close()


def _header(event: h11.Request, name: bytes) -> bytes:
    return next((bytes(v) for k, v in event.headers if k == name), b"")


class HttpServer:
    """All listeners of one router, and the connections they made."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self, listener: Listener) -> None:
        """Serve what connects to a listening socket, which belongs to this server from now on."""
        accept = functools.partial(self._accept, listener.tls)
        if listener.socket.family == socket.AF_UNIX:
            server = await asyncio.start_unix_server(accept, sock=listener.socket, limit=READ_SIZE)
        else:
            server = await asyncio.start_server(accept, sock=listener.socket, limit=READ_SIZE)
        self._servers.append(server)

    async def _accept(
        self, tls: ssl.SSLContext | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if tls is None:
                await Connection(self._router, reader, writer).serve()
            else:
                stream = TlsStream(tls, reader, writer)
                await stream.handshake()
                await Connection(self._router, stream, stream).serve()
        except (ssl.SSLError, ConnectionError, TimeoutError) as error:
            log.info("connection refused", error=str(error) or type(error).__name__)
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
        except Exception:
            log.exception("connection failed")
        finally:
            self._connections.discard(task)

    async def close(self) -> None:
        """Stop listening and end every connection."""
        for server in self._servers:
            server.close()
        for task in tuple(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(tuple(self._connections), timeout=5)
