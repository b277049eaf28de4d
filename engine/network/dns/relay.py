"""Published ports by IPv6 of containers that have none: no kernel translates between the two, so bytes are copied.

Rule: what listens is what the engine says, every address of the host or its loopback alone. A port that another program
has there already is left to it. Each direction ends on its own (half-close), and a slow side slows the other down.
Names come first: connections end where descriptors would get scarce.
"""

from __future__ import annotations

import contextlib
import socket
from typing import NamedTuple

from engine.network.dns.loop import READ, WRITE, Loop

BACKLOG = 128
LIMIT = 4000
"""Connections of all relays together; one more is closed at once."""
CHUNK = 1 << 16


class Relay(NamedTuple):
    """``[listens]:host_port`` leads to ``address:port``; ``listens`` is ``::`` or ``::1``, ``protocol`` tcp or udp."""

    host_port: int
    address: str
    port: int
    listens: str
    protocol: str


class Connection:
    """A client of a relay."""

    def close(self) -> None:
        """End it. Idempotent."""
        raise NotImplementedError


Connections = set[Connection]


class RelayListener:
    """One port on the loopback; ``close`` ends it and its connections."""

    def __init__(self, loop: Loop, relay: Relay, everybody: Connections) -> None:
        """``everybody`` are the connections of all relays. Raises ``OSError`` when somebody else has the port."""
        self._loop = loop
        self._relay = relay
        self._everybody = everybody
        self._connections: Connections = set()
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._socket.bind((relay.listens, relay.host_port))
            self._socket.listen(BACKLOG)
        except BaseException:
            self._socket.close()
            raise
        loop.watch(self._socket, READ, self._accept)

    def close(self) -> None:
        """Stop listening and cut connections. Idempotent."""
        self._loop.forget(self._socket)
        for pair in tuple(self._connections):
            pair.close()

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:
            return
        if len(self._everybody) >= LIMIT:
            client.close()
            return
        client.setblocking(False)
        family = socket.AF_INET6 if ":" in self._relay.address else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(BlockingIOError):
                server.connect((self._relay.address, self._relay.port))
        except OSError:
            client.close()
            server.close()
            return
        pair = _Pair(self._loop, client, server, (self._connections, self._everybody))
        self._connections.add(pair)
        self._everybody.add(pair)


class _Pair(Connection):
    """A client and the container's server, with at most a chunk on its way in each direction."""

    def __init__(
        self, loop: Loop, client: socket.socket, server: socket.socket, listed: tuple[Connections, ...]
    ) -> None:
        """It takes itself out of the sets where it is ``listed`` when it ends."""
        self._loop = loop
        self._listed = listed
        for sock in (client, server):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a peer that vanished would stay for ever
        self._peer = {client: server, server: client}
        self._pending: dict[socket.socket, bytes] = {client: b"", server: b""}
        """What is still to be written to a socket."""
        self._ended: set[socket.socket] = set()
        """Sockets that have sent their last byte."""
        self._connecting = server
        loop.watch(server, WRITE, self._connected)

    def close(self) -> None:
        """Close both. Idempotent."""
        for connections in self._listed:
            connections.discard(self)
        for sock in self._peer:
            self._loop.forget(sock)

    def _connected(self) -> None:
        if self._connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.close()
            return
        for sock in self._peer:
            self._watch(sock)

    def _watch(self, sock: socket.socket) -> None:
        """Read where there is room for what comes, write where something waits."""
        events = WRITE if self._pending[sock] else 0
        if sock not in self._ended and not self._pending[self._peer[sock]]:
            events |= READ
        if events:
            self._loop.watch(sock, events, lambda: self._ready(sock))
        else:
            # A hang-up would be told over and over, whatever is asked for.
            self._loop.unwatch(sock)

    def _ready(self, sock: socket.socket) -> None:
        try:
            if self._pending[sock]:
                self._write(sock)
            if sock not in self._ended and not self._pending[self._peer[sock]]:
                self._read(sock)
        except OSError:
            self.close()
            return
        if len(self._ended) == 2 and not any(self._pending.values()):
            self.close()
            return
        for one in self._peer:
            self._watch(one)

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(CHUNK)
        except BlockingIOError:
            return
        peer = self._peer[sock]
        if not data:
            self._ended.add(sock)
            peer.shutdown(socket.SHUT_WR)
            return
        self._pending[peer] = data
        self._write(peer)

    def _write(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            self._pending[sock] = self._pending[sock][sock.send(self._pending[sock]) :]
