"""A small Docker API client for storms: raw HTTP over a unix socket, and one word for every way a call can end.

Rule: nothing is retried here. A call gives an answer, or raises ``Broken`` when the connection did not live to see one.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any, NamedTuple
from urllib.parse import urlencode

HEADER = 8


class Broken(Exception):
    """Nobody answered: the engine is not there, or died before the answer was whole."""


class Answer(NamedTuple):
    """An HTTP answer; ``data`` is decoded JSON, or the bytes of anything else."""

    status: int
    data: Any

    @property
    def ok(self) -> bool:
        return self.status < 400

    @property
    def message(self) -> str:
        """What an error says."""
        return str(self.data.get("message", "")) if isinstance(self.data, dict) else repr(self.data)[:200]


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("engine", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Api:
    """Calls of the engine that listens on ``path``."""

    def __init__(self, path: str, timeout: float = 60.0) -> None:
        self.path = path
        self._timeout = timeout

    def call(
        self, method: str, path: str, body: object = None, *, timeout: float | None = None, **query: Any
    ) -> Answer:
        """One request on a connection of its own. Raises ``Broken``."""
        target = f"/v1.41{path}" + (f"?{urlencode(query)}" if query else "")
        connection = _Connection(self.path, timeout or self._timeout)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        try:
            connection.request(method, target, data, headers)
            response = connection.getresponse()
            raw = response.read()
            return Answer(response.status, _decoded(raw, response.headers.get_content_type()))
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()

    def hijack(self, path: str, body: object = None, **query: object) -> socket.socket:
        """The connection of an attach or exec start, behind its answer's head. Raises ``Broken``."""
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"POST /v1.41{path}?{urlencode(query)} HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.settimeout(self._timeout)
            peer.connect(self.path)
            peer.sendall(head.encode() + data)
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                byte = peer.recv(1)
                if not byte:
                    raise Broken(f"POST {path}: hung up in the head")
                answer += byte
            if answer.split()[1] not in (b"101", b"200"):
                raise Broken(f"POST {path}: {answer.splitlines()[0].decode()}")
            return peer
        except OSError as error:
            peer.close()
            raise Broken(f"POST {path}: {error!r}") from error
        except Broken:
            peer.close()
            raise


def _decoded(raw: bytes, kind: str) -> Any:
    if kind == "application/json" and raw:
        try:
            return json.loads(raw)
        except ValueError:
            return raw
    return raw


def demultiplexed(data: bytes) -> tuple[bytes, bytes]:
    """(stdout, stderr) of Docker's frames; a frame that was cut off is left out."""
    streams = {1: bytearray(), 2: bytearray()}
    at = 0
    while at + HEADER <= len(data):
        size = int.from_bytes(data[at + 4 : at + HEADER], "big")
        if at + HEADER + size > len(data):
            break
        streams.setdefault(data[at], bytearray()).extend(data[at + HEADER : at + HEADER + size])
        at += HEADER + size
    return bytes(streams[1]), bytes(streams[2])
