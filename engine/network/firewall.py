"""The firewall: one nftables table of our own, published ports as elements of one map in it.

Rule: the table is a pure function of networks and ports (``ruleset``). A port is one transaction that adds elements; a
change of networks replaces the whole table in one transaction, so no packet ever meets half of it, and established
connections go on (their translation lives in conntrack). No other table is read or written.

The map ``ports`` is ``host address . protocol . host port -> container address . container port``, with 0.0.0.0 for
"every address of this host". The chains:

    raw         containers cannot reach this host's loopback by way of route_localnet
    prerouting  published ports, for packets from elsewhere and from containers (never to 127.0.0.0/8)
    output      published ports, for this host's own connections
    postrouting masquerade: loopback sources, container-to-published-port ("hairpin"), containers to the outside
    forward     bridges reach the outside and themselves; from elsewhere only published ports and replies come in
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from engine.network import nft
from engine.network.netlink import NETLINK_NETFILTER, Message, Netlink, NetlinkError
from engine.network.nft import REG

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
ANY_ADDRESS = IPv4Address(0)

BRIDGES, INTERNAL, SAME, PORTS = 1, 2, 3, 4
_TARGET = REG + 8
_SOURCE_OFFSET, _DESTINATION_OFFSET = 12, 16


@dataclass(frozen=True, slots=True)
class BridgeRules:
    """What the firewall knows of one bridge network."""

    bridge: str
    subnet: IPv4Network
    masquerade: bool = True
    internal: bool = False
    icc: bool = True


@dataclass(frozen=True, slots=True)
class PortRule:
    """One published port."""

    host_address: IPv4Address
    protocol: str
    host_port: int
    address: IPv4Address
    port: int

    def key(self) -> bytes:
        """The map's key, each field padded to four bytes."""
        return struct.pack(">4sB3xHxx", self.host_address.packed, PROTOCOLS[self.protocol], self.host_port)

    def data(self) -> bytes:
        """The map's data."""
        return struct.pack(">4sHxx", self.address.packed, self.port)


def _ipv4() -> bytes:
    return nft.meta(nft.META_NFPROTO) + nft.equal(bytes([nft.FAMILY_IPV4]))


def _in(network: IPv4Network, offset: int, *, inverted: bool = False) -> bytes:
    load = nft.payload(nft.NETWORK_HEADER, offset, 4) + nft.mask(network.netmask.packed)
    return load + nft.equal(network.network_address.packed, inverted=inverted)


def _from(name: str, identifier: int) -> bytes:
    return nft.meta(nft.META_IIFNAME) + nft.lookup(name, identifier)


def _to(*, inverted: bool = False) -> bytes:
    return nft.meta(nft.META_OIFNAME) + nft.lookup("bridges", BRIDGES, inverted=inverted)


def _connection(key: int, bits: int) -> bytes:
    return nft.conntrack(key) + nft.mask(struct.pack("=I", bits)) + nft.equal(bytes(4), inverted=True)


def _publish(address: bytes) -> bytes:
    key = address + nft.meta(nft.META_L4PROTO, REG + 1) + nft.payload(nft.TRANSPORT_HEADER, 2, 2, REG + 2)
    return key + nft.lookup("ports", PORTS, into=_TARGET) + nft.dnat(_TARGET, _TARGET + 1)


LOOPBACK = IPv4Network("127.0.0.0/8")


def ruleset(table: str, networks: Sequence[BridgeRules], ports: Iterable[PortRule]) -> list[Message]:
    """The whole table, made anew: what was there under its name goes in the same transaction."""
    out = [nft.new_table(table), nft.delete_table(table), nft.new_table(table)]
    out += [
        nft.new_set(table, "bridges", (nft.TYPE_IFNAME,), nft.IFNAME_SIZE, BRIDGES),
        nft.new_set(table, "internal", (nft.TYPE_IFNAME,), nft.IFNAME_SIZE, INTERNAL),
        nft.new_set(table, "same", (nft.TYPE_IFNAME, nft.TYPE_IFNAME), 2 * nft.IFNAME_SIZE, SAME),
        nft.new_map(
            table,
            "ports",
            ((nft.TYPE_IPV4, nft.TYPE_PROTO, nft.TYPE_SERVICE), 12),
            ((nft.TYPE_IPV4, nft.TYPE_SERVICE), 8),
            PORTS,
        ),
        nft.new_chain(table, "raw", "filter", nft.PREROUTING, nft.RAW),
        nft.new_chain(table, "prerouting", "nat", nft.PREROUTING, nft.DSTNAT),
        nft.new_chain(table, "output", "nat", nft.OUTPUT, nft.DSTNAT),
        nft.new_chain(table, "postrouting", "nat", nft.POSTROUTING, nft.SRCNAT),
        nft.new_chain(table, "forward", "filter", nft.FORWARD, nft.FILTER),
    ]
    out += _members(table, networks)
    out += _translation(table, networks)
    out += _forward(table)
    return out + nft.elements(nft.NEW_ELEMENT, table, "ports", ((p.key(), p.data()) for p in ports))


def _members(table: str, networks: Sequence[BridgeRules]) -> list[Message]:
    names = [(nft.ifname(n.bridge), n) for n in networks]
    same = ((name * 2, None) for name, n in names if n.icc)
    return [
        *nft.elements(nft.NEW_ELEMENT, table, "bridges", ((name, None) for name, _ in names)),
        *nft.elements(nft.NEW_ELEMENT, table, "internal", ((name, None) for name, n in names if n.internal)),
        *nft.elements(nft.NEW_ELEMENT, table, "same", same),
    ]


def _translation(table: str, networks: Sequence[BridgeRules]) -> list[Message]:
    destination = nft.payload(nft.NETWORK_HEADER, _DESTINATION_OFFSET, 4)
    local = nft.destination_type() + nft.equal(struct.pack("=I", nft.RTN_LOCAL))
    every = nft.immediate(ANY_ADDRESS.packed)
    to_loopback, accept = _in(LOOPBACK, _DESTINATION_OFFSET), nft.verdict(nft.ACCEPT)
    from_elsewhere = nft.meta(nft.META_IIFNAME) + nft.equal(nft.ifname("lo"), inverted=True)
    translated = _connection(nft.CT_STATUS, nft.STATUS_DNAT)
    out = [
        nft.new_rule(table, "raw", _from("bridges", BRIDGES), _ipv4(), to_loopback, nft.verdict(nft.DROP)),
        # Martians must not become published ports of 127.0.0.1: translation comes before the kernel's check.
        nft.new_rule(table, "prerouting", from_elsewhere, _ipv4(), to_loopback, accept),
        nft.new_rule(table, "prerouting", _ipv4(), _publish(destination)),
        nft.new_rule(table, "prerouting", _ipv4(), local, _publish(every)),
        nft.new_rule(table, "output", _ipv4(), _publish(destination)),
        nft.new_rule(table, "output", _ipv4(), local, _publish(every)),
        nft.new_rule(table, "postrouting", _to(), _ipv4(), _in(LOOPBACK, _SOURCE_OFFSET), nft.masquerade()),
    ]
    for network in networks:
        inside = _in(network.subnet, _SOURCE_OFFSET)
        out.append(nft.new_rule(table, "postrouting", _to(), translated, _ipv4(), inside, nft.masquerade()))
        if network.masquerade and not network.internal:
            out.append(nft.new_rule(table, "postrouting", _to(inverted=True), _ipv4(), inside, nft.masquerade()))
    return out


def _forward(table: str) -> list[Message]:
    accept, drop = nft.verdict(nft.ACCEPT), nft.verdict(nft.DROP)
    replies = _connection(nft.CT_STATE, nft.STATE_ESTABLISHED | nft.STATE_RELATED)
    published = _connection(nft.CT_STATUS, nft.STATUS_DNAT)
    # An interface name fills four registers: the pair's second half starts at the fifth.
    pair = nft.meta(nft.META_IIFNAME) + nft.meta(nft.META_OIFNAME, REG + 4)
    return [
        nft.new_rule(table, "forward", _to(), replies, accept),
        nft.new_rule(table, "forward", _to(), published, accept),
        nft.new_rule(table, "forward", pair, nft.lookup("same", SAME), accept),
        nft.new_rule(table, "forward", _to(), drop),
        nft.new_rule(table, "forward", _from("internal", INTERNAL), drop),
        nft.new_rule(table, "forward", _from("bridges", BRIDGES), accept),
    ]


class Firewall:
    """The table in this thread's network namespace. For one worker thread."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._netlink = Netlink(NETLINK_NETFILTER)

    def _commit(self, messages: Sequence[Message]) -> None:
        self._netlink.transaction(nft.batch_begin(), messages, nft.batch_end())

    def replace(self, networks: Sequence[BridgeRules], ports: Iterable[PortRule]) -> None:
        """Make the table hold exactly these networks and ports. Raises ``NetlinkError`` and changes nothing then."""
        self._commit(ruleset(self.table, networks, ports))

    def publish(self, ports: Sequence[PortRule]) -> None:
        """Add published ports, all or none."""
        pairs = ((p.key(), p.data()) for p in ports)
        self._commit(nft.elements(nft.NEW_ELEMENT, self.table, "ports", pairs))

    def unpublish(self, ports: Sequence[PortRule]) -> None:
        """Remove published ports. Idempotent."""
        try:
            self._commit(self._deletion(ports))
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            for port in ports:
                self._unpublish_one(port)

    def _deletion(self, ports: Sequence[PortRule]) -> list[Message]:
        return nft.elements(nft.DELETE_ELEMENT, self.table, "ports", ((p.key(), None) for p in ports))

    def _unpublish_one(self, port: PortRule) -> None:
        try:
            self._commit(self._deletion((port,)))
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise

    def remove(self) -> None:
        """Delete the table and all in it. Idempotent."""
        self._commit([nft.new_table(self.table), nft.delete_table(self.table)])

    def close(self) -> None:
        """Close the socket; the table stays."""
        self._netlink.close()
