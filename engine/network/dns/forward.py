"""Questions about other names: asked of upstream servers, by UDP or TCP, until one answers.

Rule: an answer is taken only from the server that was asked, with the id and the question that were sent; each question
has a socket and an id of its own, so that nobody can slip one in. A server that fails is left for the next one at once,
a silent one after ``PATIENCE``, and it may still answer later.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence

from engine.network.dns import codec
from engine.network.dns.codec import Query
from engine.network.dns.loop import READ, WRITE, Loop, Timer

PATIENCE = 1.0
"""Seconds a server has before the next one is asked as well."""
DEADLINE = 4.5
"""Seconds until the client is told that nobody answers: less than the five after which C libraries give up."""
PORT = 53
BUFFER = 0xFFFF
_BAD = (codec.SERVFAIL, codec.REFUSED, codec.NOTIMP, codec.FORMERR)
RESOLV_CONF = "/etc/resolv.conf"
FALLBACK = ("8.8.8.8", "8.8.4.4")
MAX_SERVERS = 3

OpenSocket = Callable[[int, int], socket.socket]
"""A socket of a family and a type, made in the namespace where the server is to be asked."""


def host_socket(family: int, kind: int) -> socket.socket:
    """A socket of this process's own namespace."""
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


class HostServers:
    """The servers of the host's resolv.conf, read again when it changes."""

    def __init__(self, path: str = RESOLV_CONF) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._looked = -1.0
        self._servers: tuple[str, ...] = FALLBACK

    def current(self) -> tuple[str, ...]:
        """The servers as of at most a second ago."""
        now = time.monotonic()
        if now - self._looked >= 1 or self._looked < 0:
            self._looked = now
            self._look()
        return self._servers

    def _look(self) -> None:
        try:
            status = os.stat(self._path)
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return
            with open(self._path, encoding="utf-8", errors="replace") as file:
                lines = [line.split() for line in file]
        except OSError:
            return
        self._seen = seen
        found = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
        self._servers = tuple(found[:MAX_SERVERS]) or FALLBACK


def _target(server: str) -> tuple[int, tuple[str, int] | tuple[str, int, int, int]]:
    """(family, socket address) of a server's address, which may have a zone; raises ``OSError``."""
    info = socket.getaddrinfo(server, PORT, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    return info[0][0], info[0][4]  # type: ignore[return-value]  # typeshed knows fewer shapes


class Exchange:
    """One question on its way. ``done`` is called once, with the answer under the client's id or None."""

    def __init__(
        self,
        loop: Loop,
        packet: bytes,
        query: Query,
        servers: Sequence[tuple[str, OpenSocket]],
        done: Callable[[bytes | None], None],
        *,
        stream: bool,
    ) -> None:
        """``packet`` is the client's message; with ``stream`` the servers are asked by TCP."""
        self._loop = loop
        self._query = query
        self._id = secrets.randbelow(1 << 16)
        self._packet = codec.with_id(packet, self._id)
        self._waiting = list(servers)
        self._done: Callable[[bytes | None], None] | None = done
        self._stream = stream
        self._open: dict[socket.socket, bytearray] = {}
        self._refusal: bytes | None = None
        self._next: Timer | None = None
        self._end = loop.later(DEADLINE, self._give_up)
        self._ask_next()

    @property
    def pending(self) -> bool:
        """Whether ``done`` has not been called yet."""
        return self._done is not None

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._done = None
        self._close()

    def _ask_next(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        while self._waiting and self._done is not None:
            server, make = self._waiting.pop(0)
            try:
                self._ask(server, make)
            except OSError:
                continue
            self._next = self._loop.later(PATIENCE, self._ask_next)
            return
        if not self._open:
            self._give_up()

    def _ask(self, server: str, make: OpenSocket) -> None:
        family, target = _target(server)
        sock = make(family, socket.SOCK_STREAM if self._stream else socket.SOCK_DGRAM)
        self._open[sock] = bytearray()
        try:
            if not self._stream:
                sock.connect(target)
                sock.send(self._packet)
                self._loop.watch(sock, READ, lambda: self._receive(sock))
                return
            with contextlib.suppress(BlockingIOError):
                sock.connect(target)
            message = bytearray(struct.pack(">H", len(self._packet)) + self._packet)
            self._loop.watch(sock, WRITE, lambda: self._send(sock, message))
        except OSError:
            self._drop(sock)
            raise

    def _send(self, sock: socket.socket, message: bytearray) -> None:
        try:
            del message[: sock.send(message)]
        except BlockingIOError:
            return
        except OSError:
            self._failed(sock)
            return
        if not message:
            self._loop.watch(sock, READ, lambda: self._receive(sock))

    def _receive(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(BUFFER)
        except BlockingIOError:
            return
        except OSError:
            self._failed(sock)
            return
        if not self._stream:
            self._answer(sock, data)
            return
        buffer = self._open[sock]
        buffer += data
        if len(buffer) >= 2 and len(buffer) >= 2 + int.from_bytes(buffer[:2], "big"):
            self._answer(sock, bytes(buffer[2 : 2 + int.from_bytes(buffer[:2], "big")]))
        elif not data:
            self._failed(sock)

    def _answer(self, sock: socket.socket, reply: bytes) -> None:
        if not codec.answers(reply, self._id, self._query.question):
            if self._stream:
                self._failed(sock)
            return
        if codec.code_of(reply) in _BAD:
            self._refusal = reply
            self._failed(sock)
            return
        self._finish(reply)

    def _failed(self, sock: socket.socket) -> None:
        self._drop(sock)
        if self._waiting or not self._open:
            self._ask_next()

    def _give_up(self) -> None:
        self._finish(self._refusal)

    def _finish(self, reply: bytes | None) -> None:
        done, self._done = self._done, None
        self._close()
        if done is not None:
            done(codec.with_id(reply, self._query.id) if reply is not None else None)

    def _drop(self, sock: socket.socket) -> None:
        self._open.pop(sock, None)
        self._loop.forget(sock)

    def _close(self) -> None:
        self._end.cancel()
        if self._next is not None:
            self._next.cancel()
        self._waiting.clear()
        for sock in tuple(self._open):
            self._drop(sock)
