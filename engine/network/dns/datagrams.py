"""Published UDP ports by IPv6 of containers that have none: each client has a socket towards the container.

Rule: an answer leaves from the address that the client sent to (RFC 3542, IPV6_PKTINFO), or it would not be taken for
one. A client that is silent for a while is forgotten, and so is the newest where descriptors would get scarce.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from ipaddress import IPv6Address

from engine.network.dns.loop import READ, Loop
from engine.network.dns.relay import LIMIT, Connection, Connections, Relay

IDLE_SECONDS = 90.0
"""As in Docker: what a client's port may be silent before it is another conversation."""
BURST = 64
BUFFER = 0xFFFF
_PACKET_INFO = struct.Struct("=16sI")

Peer = tuple[str, int, int, int]
Conversation = tuple[Peer, bytes]


class DatagramRelay:
    """One port; ``close`` ends it and its conversations."""

    def __init__(self, loop: Loop, relay: Relay, everybody: Connections) -> None:
        """``everybody`` are the connections of all relays. Raises ``OSError`` when somebody else has the port."""
        self._loop = loop
        self._relay = relay
        self._everybody = everybody
        self._conversations: dict[Conversation, _Client] = {}
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_INET6, kind)
        try:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self._socket.bind((relay.listens, relay.host_port))
        except BaseException:
            self._socket.close()
            raise
        loop.watch(self._socket, READ, self._receive)

    def close(self) -> None:
        """Close everything. Idempotent."""
        self._loop.forget(self._socket)
        for client in tuple(self._conversations.values()):
            client.close()

    def _receive(self) -> None:
        for _ in range(BURST):
            try:
                data, ancillary, _, peer = self._socket.recvmsg(BUFFER, socket.CMSG_SPACE(_PACKET_INFO.size))
            except OSError:
                return
            client = self._client((peer, _answering(ancillary)))
            if client is not None:
                client.send(data)

    def _client(self, conversation: Conversation) -> _Client | None:
        found = self._conversations.get(conversation)
        if found is None and len(self._everybody) < LIMIT:
            with contextlib.suppress(OSError):
                found = _Client(self._loop, self, conversation, (self._relay.address, self._relay.port))
                self._conversations[conversation] = found
                self._everybody.add(found)
        return found

    def answer(self, conversation: Conversation, data: bytes) -> None:
        """Send to a client, from the address that it asked."""
        peer, info = conversation
        ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)] if info else []
        # A full buffer or a vanished client: datagrams may get lost.
        with contextlib.suppress(OSError):
            self._socket.sendmsg([data], ancillary, 0, peer)

    def forget(self, conversation: Conversation, client: _Client) -> None:
        """A conversation has ended."""
        self._conversations.pop(conversation, None)
        self._everybody.discard(client)


def _answering(ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """The packet information for answers to a datagram that came with ``ancillary``."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(data) == _PACKET_INFO.size:
            address, index = _PACKET_INFO.unpack(data)
            # The way back is the routing table's to choose, but for addresses that every link has.
            return _PACKET_INFO.pack(address, index if IPv6Address(address).is_link_local else 0)
    return b""


class _Client(Connection):
    """One client, as the container sees it: a port of the host's."""

    def __init__(self, loop: Loop, relay: DatagramRelay, conversation: Conversation, target: tuple[str, int]) -> None:
        """Raises ``OSError`` when there is no way to the container."""
        self._loop = loop
        self._relay = relay
        self._conversation = conversation
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(target)
        except BaseException:
            self._socket.close()
            raise
        self._heard = time.monotonic()
        self._timer = loop.later(IDLE_SECONDS, self._look)
        loop.watch(self._socket, READ, self._receive)

    def close(self) -> None:
        """End it. Idempotent."""
        self._timer.cancel()
        self._relay.forget(self._conversation, self)
        self._loop.forget(self._socket)

    def send(self, data: bytes) -> None:
        """From the client to the container."""
        self._heard = time.monotonic()
        # Nobody listens there (yet), or its buffer is full.
        with contextlib.suppress(OSError):
            self._socket.send(data)

    def _receive(self) -> None:
        for _ in range(BURST):
            try:
                data = self._socket.recv(BUFFER)
            except OSError:
                return
            self._heard = time.monotonic()
            self._relay.answer(self._conversation, data)

    def _look(self) -> None:
        rest = self._heard + IDLE_SECONDS - time.monotonic()
        if rest <= 0:
            self.close()
        else:
            self._timer = self._loop.later(rest, self._look)
