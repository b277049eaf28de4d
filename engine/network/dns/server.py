"""Answers the questions of containers: from the table, from upstream, or with the reason why not.

Rule: what is known of a name is the whole truth about it: a container without an IPv6 address gets an empty answer to
AAAA, never NXDOMAIN and never somebody else's. What nobody could be asked about is SERVFAIL, never NXDOMAIN.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
from collections.abc import Callable

from engine.network.dns import codec
from engine.network.dns.codec import Answer, Query
from engine.network.dns.datagrams import DatagramRelay
from engine.network.dns.forward import BUFFER, MAX_SERVERS, Exchange, HostServers, OpenSocket, host_socket
from engine.network.dns.loop import READ, WRITE, Loop
from engine.network.dns.namespace import Home
from engine.network.dns.relay import Connections, Relay, RelayListener
from engine.network.dns.table import Record, Table

PENDING_LIMIT = 1000
"""Questions of one container that may be on their way at once; Docker has a like limit."""
CLIENT_LIMIT = 100
"""TCP clients of one container."""
CLIENT_SECONDS = 10.0
BURST = 64
"""Datagrams that are read from one container before others have their turn."""
REMEMBERED = 500
"""Answers of one container that are kept as bytes, until any record changes."""

Reply = Callable[[bytes], None]


class Server:
    """Serves every container of ``table`` that was opened."""

    def __init__(self, loop: Loop, host_servers: HostServers | None = None) -> None:
        self.table = Table()
        self.loop = loop
        self._home = Home()
        self._host_servers = host_servers or HostServers()
        self._open: dict[str, ContainerSockets] = {}
        self._relays: dict[str, dict[Relay, RelayListener | DatagramRelay]] = {}
        self._relayed: Connections = set()
        self.answered = self.forwarded = self.failed = 0
        self.generation = 0

    def put(self, record: Record) -> None:
        """Know a container, and listen in its namespace if that is not done. Raises ``OSError``."""
        self.generation += 1
        self.table.put(record)
        self._relay(record.id, record.relays)
        if record.asks and record.id not in self._open:
            udp, tcp = self._home.listen(record.pin)
            self._open[record.id] = ContainerSockets(self, record.id, udp, tcp)

    def drop(self, container_id: str) -> None:
        """Forget a container; its namespace is no longer held. Idempotent."""
        self.generation += 1
        self.table.drop(container_id)
        self._relay(container_id, ())
        sockets = self._open.pop(container_id, None)
        if sockets is not None:
            sockets.close()

    def _relay(self, container_id: str, wanted: tuple[Relay, ...]) -> None:
        """Have exactly these relays of a container."""
        running = self._relays.pop(container_id, {})
        for relay in set(running) - set(wanted):
            running.pop(relay).close()
        for relay in wanted:
            if relay not in running:
                # Another program has the port on the loopback: it keeps it.
                with contextlib.suppress(OSError):
                    kind = DatagramRelay if relay.protocol == "udp" else RelayListener
                    running[relay] = kind(self.loop, relay, self._relayed)
        if running:
            self._relays[container_id] = running

    def statistics(self) -> dict[str, int]:
        """Counters since the start."""
        counts = {"answered": self.answered, "forwarded": self.forwarded, "failed": self.failed}
        return {"containers": len(self._open), **counts}

    def local(self, record: Record, query: Query) -> tuple[int, list[Answer]] | None:
        """(code, answers) from what is known here, or None for a name of the world."""
        if query.network != codec.IN:
            return codec.REFUSED, []
        if query.kind == codec.PTR:
            address = codec.reverse_address(query.name)
            name = self.table.name_of(record, address) if address is not None else None
            return (codec.NOERROR, [codec.name_answer(name)]) if name is not None else None
        found = self.table.addresses(record, query.name)
        if found is None:
            return None
        records = [codec.address_answer(address) for address in found]
        return codec.NOERROR, [a for a in records if query.kind in (a[0], codec.ANY)]

    def upstream(self, record: Record) -> list[tuple[str, OpenSocket]]:
        """The servers that a container's other questions go to, and how to reach each."""
        if record.servers:
            inside: OpenSocket = functools.partial(self._socket_inside, record.pin)
            return [(server, inside) for server in record.servers[:MAX_SERVERS]]
        servers = record.host_servers[:MAX_SERVERS] or self._host_servers.current()
        return [(server, host_socket) for server in servers]

    def _socket_inside(self, pin: str, family: int, kind: int) -> socket.socket:
        with self._home.inside(pin):
            return host_socket(family, kind)


class ContainerSockets:
    """The sockets of one container, its questions on their way, and its TCP clients."""

    def __init__(self, server: Server, container_id: str, udp: socket.socket, tcp: socket.socket) -> None:
        self._server = server
        self._id = container_id
        self._udp = udp
        self._tcp = tcp
        self._pending: set[Exchange] = set()
        self._clients: set[StreamClient] = set()
        self._remembered: dict[bytes, bytes] = {}
        self._generation = -1
        server.loop.watch(udp, READ, self._datagrams)
        server.loop.watch(tcp, READ, self._accept)

    def close(self) -> None:
        """Close everything. Idempotent."""
        for exchange in tuple(self._pending):
            exchange.cancel()
        for client in tuple(self._clients):
            client.close()
        self._pending.clear()
        self._server.loop.forget(self._udp)
        self._server.loop.forget(self._tcp)

    def _datagrams(self) -> None:
        for _ in range(BURST):
            try:
                packet, peer = self._udp.recvfrom(BUFFER)
            except BlockingIOError:
                return
            answer = self._recall(packet)
            if answer is not None:
                self._send(peer, answer)
            else:
                self.ask(packet, functools.partial(self._send, peer), stream=False)

    def _recall(self, packet: bytes) -> bytes | None:
        """The answer that the same question had, under this one's id."""
        if self._generation != self._server.generation:
            self._remembered.clear()
            self._generation = self._server.generation
        answer = self._remembered.get(packet[2:])
        if answer is None:
            return None
        self._server.answered += 1
        return packet[:2] + answer

    def _send(self, peer: tuple[str, int], reply: bytes) -> None:
        # A full buffer or a vanished client: the client asks again.
        with contextlib.suppress(OSError):
            self._udp.sendto(reply, peer)

    def _accept(self) -> None:
        try:
            sock, _ = self._tcp.accept()
        except OSError:
            return
        if len(self._clients) >= CLIENT_LIMIT:
            sock.close()
            return
        sock.setblocking(False)
        self._clients.add(StreamClient(self._server.loop, sock, self.ask, self._clients))

    def ask(self, packet: bytes, reply: Reply, *, stream: bool) -> None:
        """Answer one message through ``reply``, now or later."""
        server = self._server
        record = server.table.get(self._id)
        try:
            query = codec.parse_query(packet)
        except codec.DnsFormatError:
            told = codec.error_response(packet, codec.FORMERR)
            if told:
                reply(told)
            return
        if record is None or query.flags & codec.OPCODE:
            reply(codec.response(query, codec.SERVFAIL if record is None else codec.NOTIMP))
            return
        known = server.local(record, query)
        if known is not None:
            server.answered += 1
            code, answers = known
            answer = codec.response(query, code, answers, limit=0xFFFF if stream else query.limit)
            # Several addresses take turns; one is always the same.
            if not stream and len(answers) < 2 and len(self._remembered) < REMEMBERED:
                self._remembered[packet[2:]] = answer[2:]
            reply(answer)
            return
        if not record.forward or len(self._pending) >= PENDING_LIMIT:
            server.failed += 1
            reply(codec.response(query, codec.SERVFAIL))
            return
        self._forward(record, packet, query, reply, stream=stream)

    def _forward(self, record: Record, packet: bytes, query: Query, reply: Reply, *, stream: bool) -> None:
        server = self._server
        server.forwarded += 1
        started: list[Exchange] = []

        def done(answer: bytes | None) -> None:
            self._pending.difference_update(started)
            if answer is None:
                server.failed += 1
                answer = codec.response(query, codec.SERVFAIL)
            reply(answer)

        exchange = Exchange(server.loop, packet, query, server.upstream(record), done, stream=stream)
        started.append(exchange)
        if exchange.pending:
            self._pending.add(exchange)


class StreamClient:
    """One TCP connection: questions, each with its length in front, answered in the order they are ready."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        ask: Callable[..., None],
        others: set[StreamClient],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._ask = ask
        self._others = others
        self._in = bytearray()
        self._out = bytearray()
        self._timer = loop.later(CLIENT_SECONDS, self.close)
        loop.watch(sock, READ, self._read)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._timer.cancel()
        self._others.discard(self)
        self._loop.forget(self._sock)

    def _read(self) -> None:
        try:
            data = self._sock.recv(BUFFER)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._timer.cancel()
        self._timer = self._loop.later(CLIENT_SECONDS, self.close)
        self._in += data
        while len(self._in) >= 2 and len(self._in) >= 2 + int.from_bytes(self._in[:2], "big"):
            size = int.from_bytes(self._in[:2], "big")
            packet = bytes(self._in[2 : 2 + size])
            del self._in[: 2 + size]
            self._ask(packet, self._reply, stream=True)

    def _reply(self, message: bytes) -> None:
        if self._sock.fileno() < 0:
            return
        self._out += struct.pack(">H", len(message)) + message
        self._write()

    def _write(self) -> None:
        try:
            del self._out[: self._sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._out:
            self._loop.watch(self._sock, READ | WRITE, self._both)
        else:
            self._loop.watch(self._sock, READ, self._read)

    def _both(self) -> None:
        if self._out:
            self._write()
        if self._sock.fileno() >= 0:
            self._read()
