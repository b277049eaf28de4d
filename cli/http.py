"""A small HTTP/1.1 client for the engine: unix socket or TCP, chunked bodies, hijacked streams.

``http.client`` would cost more start-up time than all of ``gantry ps`` may take; this is what the engine needs of it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any
from urllib.parse import quote

from cli import transport
from cli.errors import ApiError, CommandFailed

API = "/v1.51"
CHUNK = 1 << 16

Query = dict[str, str | int | bool | None]


def encode_query(query: Query | None) -> str:
    """``?a=1&b=…``: None is left out, booleans are 1 and 0."""
    if not query:
        return ""
    pairs = [
        f"{name}={quote(str(int(value)) if isinstance(value, bool) else str(value), safe='')}"
        for name, value in query.items()
        if value is not None
    ]
    return "?" + "&".join(pairs) if pairs else ""


class Buffered:
    """Lines and pieces from a socket; what was read ahead stays in ``pending``."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.pending = b""

    def _more(self) -> bool:
        data = self._socket.recv(CHUNK)
        self.pending += data
        return bool(data)

    def line(self) -> bytes:
        """The next line without its end; ``b""`` at end of file too."""
        while b"\n" not in self.pending:
            if not self._more():
                break
        line, _, self.pending = self.pending.partition(b"\n")
        return line.rstrip(b"\r")

    def some(self, limit: int) -> bytes:
        """At least one byte and at most ``limit``; ``b""`` at end of file."""
        if not self.pending:
            self._more()
        data, self.pending = self.pending[:limit], self.pending[limit:]
        return data


class Reply:
    """An answer whose body is still on the wire. Closes its connection at the end of a ``with`` block."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._source = Buffered(sock)
        status_line = self._source.line().split(None, 2)
        if len(status_line) < 2 or not status_line[1].isdigit():
            raise CommandFailed("the engine closed the connection without an answer: see its log")
        self.status = int(status_line[1])
        self.headers: dict[str, str] = {}
        while line := self._source.line():
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.strip().lower()] = value.strip()

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def early(self) -> bytes:
        """Bytes already read past the headers: the start of a hijacked stream."""
        data, self._source.pending = self._source.pending, b""
        return data

    def chunks(self) -> Iterator[bytes]:
        """The body, piece by piece; raises ``CommandFailed`` when it ends too soon."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := self._chunk_size():
                yield from self._pieces(size)
                self._source.line()
        elif "content-length" in self.headers:
            yield from self._pieces(int(self.headers["content-length"]))
        else:
            while data := self._source.some(CHUNK):
                yield data

    def _chunk_size(self) -> int:
        line = self._source.line().partition(b";")[0].strip()
        if not line:
            raise CommandFailed("the engine ended its answer too soon: see its log")
        return int(line, 16)

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size:
            data = self._source.some(size)
            if not data:
                raise CommandFailed("the engine ended its answer too soon: see its log")
            size -= len(data)
            yield data

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks())

    def json(self) -> Any:
        """The whole body as JSON."""
        return json.loads(self.read())

    def messages(self) -> Iterator[dict[str, Any]]:
        """A stream of JSON objects, one per line, as pull and load send them."""
        pending = b""
        for chunk in self.chunks():
            *lines, pending = (pending + chunk).split(b"\n")
            yield from (json.loads(line) for line in lines if line.strip())
        if pending.strip():
            yield json.loads(pending)


class Client:
    """The engine at ``host`` (a URL as ``transport.connect`` takes it)."""

    def __init__(self, host: str) -> None:
        self.host = host

    def connect(self) -> socket.socket:
        """A fresh connection; raises ``EngineUnreachable`` with the next step."""
        return transport.connect(self.host)

    def send(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        body: Any = None,
        stream: Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send one request (``body`` as JSON, or ``stream`` chunked); errors of the engine raise ``ApiError``."""
        payload = b"" if body is None else json.dumps(body).encode()
        sock = self.connect()
        lines = [f"{method} {API}{path}{encode_query(query)} HTTP/1.1", "Host: gantry"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None:
            lines.append("Content-Type: application/json")
        lines.append("Transfer-Encoding: chunked" if stream is not None else f"Content-Length: {len(payload)}")
        try:
            sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)
            if stream is not None:
                _send_chunks(sock, stream)
            reply = Reply(sock)
        except (ConnectionError, BrokenPipeError) as error:
            sock.close()
            raise CommandFailed(f"the connection to the engine broke: {error}") from None
        if reply.status >= 400:
            with reply:
                # An answer to HEAD has no body to say why.
                raise ApiError(_message(reply) if method != "HEAD" else f"no such path: {path}", reply.status)
        return reply

    def call(self, method: str, path: str, query: Query | None = None, *, body: Any = None) -> Any:
        """Send one request and decode the JSON answer; None when there is none."""
        with self.send(method, path, query, body=body, headers={"Connection": "close"}) as reply:
            raw = reply.read() if reply.status not in (204, 304) else b""
            return json.loads(raw) if raw.strip() else None

    def hijack(self, path: str, query: Query | None = None, *, body: Any = None) -> Reply:
        """POST with an upgrade: the reply's socket carries the raw stream both ways."""
        return self.send("POST", path, query, body=body, headers={"Connection": "Upgrade", "Upgrade": "tcp"})


def _send_chunks(sock: socket.socket, stream: Iterable[bytes]) -> None:
    for piece in stream:
        if piece:
            sock.sendall(b"%x\r\n" % len(piece) + piece + b"\r\n")
    sock.sendall(b"0\r\n\r\n")


def _message(reply: Reply) -> str:
    raw = reply.read()
    try:
        return str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        return raw.decode(errors="replace").strip() or f"HTTP status {reply.status}"
