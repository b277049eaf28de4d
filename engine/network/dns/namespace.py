"""Sockets inside containers' network namespaces, and the one rule that leads questions to them.

Rule: the server's only thread is in another namespace just long enough to make sockets there, and always comes back.
The sockets listen on a port of the kernel's choice, and the container's own nftables table translates 127.0.0.11:53 to
it, so that a container can have a DNS server of its own on port 53.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

from engine.network import nft
from engine.network.netlink import NETLINK_NETFILTER, Netlink

CLONE_NEWNET = 0x40000000
ADDRESS = IPv4Address("127.0.0.11")
PORT = 53
TABLE = "gantry-dns"
BACKLOG = 64
_PROTOCOLS: dict[int, int] = {socket.SOCK_DGRAM: 17, socket.SOCK_STREAM: 6}
_DESTINATION_OFFSET = 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"enter a network namespace: {os.strerror(number)}")


class Home:
    """The namespace the server was started in."""

    def __init__(self) -> None:
        self._own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def inside(self, pin: str) -> Iterator[None]:
        """A block inside the namespace pinned at ``pin``. Raises ``OSError``."""
        descriptor = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(descriptor)
        finally:
            os.close(descriptor)
        try:
            yield
        finally:
            _setns(self._own)

    def listen(self, pin: str) -> tuple[socket.socket, socket.socket]:
        """(UDP, TCP) sockets on 127.0.0.11 inside ``pin``, and the translation of port 53 to them."""
        with self.inside(pin):
            udp, tcp = _bound(socket.SOCK_DGRAM), _bound(socket.SOCK_STREAM)
            try:
                tcp.listen(BACKLOG)
                _translate({socket.SOCK_DGRAM: udp.getsockname()[1], socket.SOCK_STREAM: tcp.getsockname()[1]})
            except BaseException:
                udp.close()
                tcp.close()
                raise
        return udp, tcp


def _bound(kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.bind((str(ADDRESS), 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _translate(ports: dict[int, int]) -> None:
    """Make the table anew: an earlier server's has other ports."""
    messages = [nft.new_table(TABLE), nft.delete_table(TABLE), nft.new_table(TABLE)]
    messages.append(nft.new_chain(TABLE, "output", "nat", nft.OUTPUT, nft.DSTNAT))
    for kind, port in ports.items():
        match = nft.meta(nft.META_NFPROTO) + nft.equal(bytes([nft.FAMILY_IPV4]))
        match += nft.payload(nft.NETWORK_HEADER, _DESTINATION_OFFSET, 4) + nft.equal(ADDRESS.packed)
        match += nft.meta(nft.META_L4PROTO) + nft.equal(bytes([_PROTOCOLS[kind]]))
        match += nft.payload(nft.TRANSPORT_HEADER, 2, 2) + nft.equal(struct.pack(">H", PORT))
        target = nft.immediate(ADDRESS.packed, nft.REG) + nft.immediate(struct.pack(">H", port), nft.REG + 1)
        messages.append(nft.new_rule(TABLE, "output", match, target, nft.dnat(nft.FAMILY_IPV4, nft.REG, nft.REG + 1)))
    netlink = Netlink(NETLINK_NETFILTER)
    try:
        netlink.transaction(nft.batch_begin(), messages, nft.batch_end())
    finally:
        netlink.close()
