"""Connections that the kernel tracks, as far as published UDP ports need it (linux/netfilter/nfnetlink_conntrack.h).

Rule: translation is decided with the first packet of a connection and then remembered. TCP begins anew when its server
is another one; a UDP client that keeps sending from one port never does, so what the kernel remembers about it is
deleted when a port comes or goes. Nothing but UDP is touched, and no connection to an address that is not this host's.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from engine.network.firewall import PROTOCOLS, PortRule
from engine.network.netlink import (
    NETLINK_NETFILTER,
    Message,
    Netlink,
    NetlinkError,
    attribute,
    attributes,
    message,
    nested,
    u32,
)
from engine.network.rtnl import FAMILIES

SUBSYSTEM = 1
GET, DELETE = 1, 2
_ORIGINAL, _REPLY, _FILTER = 1, 2, 25
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_SOURCE, _DESTINATION = {4: 1, 6: 3}, {4: 2, 6: 4}
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_FILTER_ORIGINAL = 1
_BY_NUMBER, _BY_DESTINATION_PORT = 1 << 3, 1 << 5
UDP = PROTOCOLS["udp"]

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked UDP connection: where its client sent to and who answers. ``raw`` is the client's tuple, undecoded."""

    destination: Address
    port: int
    answering: Address
    answering_port: int
    raw: bytes


def _head(version: int) -> bytes:
    return struct.pack(">BBH", FAMILIES[version], 0, 0)


def query(version: int, port: int) -> bytes:
    """Body of a dump of UDP connections to ``port``; kernels before 5.8 answer with every connection."""
    protocol = attribute(_NUMBER, bytes([UDP])) + attribute(_DESTINATION_PORT, struct.pack(">H", port))
    wanted = nested(_ORIGINAL, nested(_TUPLE_PROTOCOL, protocol))
    return _head(version) + wanted + nested(_FILTER, u32(_FILTER_ORIGINAL, _BY_NUMBER | _BY_DESTINATION_PORT))


def deletion(flow: Flow) -> Message:
    """Forget one connection."""
    body = _head(flow.destination.version) + nested(_ORIGINAL, flow.raw)
    return message(SUBSYSTEM << 8 | DELETE, 0, body)


def decode(version: int, body: bytes) -> Flow | None:
    """The connection in one answer of a dump; None for what is not UDP."""
    found = dict(attributes(body[4:]))
    original, reply = (_tuple(version, found.get(kind, b"")) for kind in (_ORIGINAL, _REPLY))
    if original is None or reply is None:
        return None
    (_, destination, _, port), (answering, _, answering_port, _) = original, reply
    return Flow(destination, port, answering, answering_port, found[_ORIGINAL])


def _tuple(version: int, data: bytes) -> tuple[Address, Address, int, int] | None:
    """(source, destination, source port, destination port)"""
    parts = dict(attributes(data))
    addresses, protocol = (dict(attributes(parts.get(kind, b""))) for kind in (_TUPLE_IP, _TUPLE_PROTOCOL))
    if protocol.get(_NUMBER) != bytes([UDP]) or not {_SOURCE[version], _DESTINATION[version]} <= addresses.keys():
        return None
    ports = (int.from_bytes(protocol.get(kind, b""), "big") for kind in (_SOURCE_PORT, _DESTINATION_PORT))
    return (ip_address(addresses[_SOURCE[version]]), ip_address(addresses[_DESTINATION[version]]), *ports)  # type: ignore[return-value]  # two ports


class Flows:
    """The connections of this thread's network namespace. For one worker thread."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def published(self, ports: Iterable[PortRule], local: Collection[Address]) -> None:
        """Forget connections to just published UDP ports that lead elsewhere; ``local`` are this host's addresses."""
        for rule in _datagram_ports(ports):
            anywhere = rule.host_address.is_unspecified
            stale = [
                flow
                for flow in self._to(rule)
                if (flow.destination == rule.host_address or (anywhere and _is_local(flow.destination, local)))
                and (flow.answering, flow.answering_port) != (rule.address, rule.port)
            ]
            self._forget(stale)

    def unpublished(self, ports: Iterable[PortRule]) -> None:
        """Forget connections that still lead to containers whose UDP ports are no longer published."""
        for rule in _datagram_ports(ports):
            target = (rule.address, rule.port)
            self._forget([flow for flow in self._to(rule) if (flow.answering, flow.answering_port) == target])

    def _to(self, rule: PortRule) -> Iterator[Flow]:
        version = rule.address.version
        for _, body in self._netlink.dump(SUBSYSTEM << 8 | GET, query(version, rule.host_port)):
            flow = decode(version, body)
            if flow is not None and flow.port == rule.host_port:
                yield flow

    def _forget(self, flows: Sequence[Flow]) -> None:
        for flow in flows:
            try:
                self._netlink.request(deletion(flow))
            except NetlinkError as error:
                if error.errno != errno.ENOENT:  # it has just ended by itself
                    raise


def has_datagrams(ports: Iterable[PortRule]) -> bool:
    """Whether any of these is a published UDP port."""
    return any(True for _ in _datagram_ports(ports))


def _datagram_ports(ports: Iterable[PortRule]) -> Iterator[PortRule]:
    return (rule for rule in ports if rule.protocol == "udp" and rule.host_port and not rule.relayed)


def _is_local(address: Address, local: Collection[Address]) -> bool:
    return address.is_loopback or address in local
