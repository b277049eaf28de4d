"""The firewall: one nftables table of our own, published ports as elements of maps in it.

Rule: what is in the table is a pure function of networks and ports (``ruleset``), but for two chains that are the
administrator's. A port is one transaction that adds elements; a change of networks replaces rules and elements in one
transaction, so no packet ever meets half of them, and established connections go on (their translation lives in
conntrack). No other table is read or written.

The maps ``ports`` and ``ports6`` are ``host address . protocol . host port -> container address . container port``,
with 0.0.0.0 and :: for "every address of this host". The chains:

    raw            containers cannot reach this host's loopback by way of route_localnet
    published      new connections to a published port, address and port still the host's, go through user-published
    prerouting     published ports, for packets from elsewhere and from containers (never to 127.0.0.0/8 or ::1)
    output         published ports, for this host's own connections
    postrouting    masquerade: loopback sources, container-to-published-port ("hairpin"), containers to the outside
    forward        user-forward first; then bridges reach the outside and themselves, and from elsewhere only published
                   ports and replies come in
    user-forward   the administrator's: every packet from or to a container (docs/networking.md)
    user-published the administrator's: see published
"""

from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from engine.network import nft
from engine.network.netlink import NETLINK_NETFILTER, Message, Netlink, NetlinkError
from engine.network.nft import FAMILY_IPV4, FAMILY_IPV6, REG

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_ICMP = {FAMILY_IPV4: 1, FAMILY_IPV6: 58}
_FAMILY = {4: FAMILY_IPV4, 6: FAMILY_IPV6}

SETS = ("bridges", "internal", "same", "direct", "routed", "ports", "ports6", "open", "open6", "relayed")
CHAINS = ("raw", "published", "prerouting", "output", "postrouting", "forward")
USER_FORWARD, USER_PUBLISHED = "user-forward", "user-published"
USER_CHAINS = (USER_FORWARD, USER_PUBLISHED)

_NUMBER = {name: number for number, name in enumerate(SETS, 1)}
_TARGET = REG + 8
_SOURCE_OFFSET, _DESTINATION_OFFSET = {FAMILY_IPV4: 12, FAMILY_IPV6: 8}, {FAMILY_IPV4: 16, FAMILY_IPV6: 24}
_SIZE = {FAMILY_IPV4: 4, FAMILY_IPV6: 16}
_BEFORE_TRANSLATION = nft.DSTNAT - 10

LOOPBACK = IPv4Network("127.0.0.0/8")
LOOPBACK6 = IPv6Network("::1/128")


@dataclass(frozen=True, slots=True)
class BridgeRules:
    """What the firewall knows of one bridge network.

    ``masquerade`` are the subnets whose containers go out under the host's address; ``hairpin`` those translated ports
    of which lead back in; ``routed`` the IP versions whose containers are reached by their own address on their
    published ports, ``direct`` those where they are on every port.
    """

    bridge: str
    masquerade: tuple[IPv4Network | IPv6Network, ...] = ()
    hairpin: tuple[IPv4Network | IPv6Network, ...] = ()
    routed: tuple[int, ...] = ()
    direct: tuple[int, ...] = ()
    internal: bool = False
    icc: bool = True


@dataclass(frozen=True, slots=True)
class PortRule:
    """One published port.

    ``host_port`` 0 only opens the container's own address (gateway mode ``routed``). An IPv6 port of the host that
    leads to an IPv4 address is relayed by a process: it is only known here, for the administrator's rules to be asked.
    """

    host_address: IPv4Address | IPv6Address
    protocol: str
    host_port: int
    address: IPv4Address | IPv6Address
    port: int

    @property
    def place(self) -> str:
        """The map or set it is an element of."""
        if self.relayed:
            return "relayed"
        return ("ports" if self.host_port else "open") + ("6" if self.address.version == 6 else "")

    @property
    def relayed(self) -> bool:
        """Whether packets to it are not translated."""
        return bool(self.host_port) and self.host_address.version != self.address.version

    def key(self) -> bytes:
        """The element's key, each field padded to four bytes."""
        if self.relayed:
            return struct.pack(">B3xHxx", PROTOCOLS[self.protocol], self.host_port)
        address, port = (self.host_address, self.host_port) if self.host_port else (self.address, self.port)
        return address.packed + struct.pack(">B3xHxx", PROTOCOLS[self.protocol], port)

    def data(self) -> bytes | None:
        """The map's data; None in a set."""
        return self.address.packed + struct.pack(">Hxx", self.port) if self.host_port and not self.relayed else None


def _is(family: int) -> bytes:
    return nft.meta(nft.META_NFPROTO) + nft.equal(bytes([family]))


def _in(network: IPv4Network | IPv6Network, offset: dict[int, int], *, inverted: bool = False) -> bytes:
    family = _FAMILY[network.version]
    load = nft.payload(nft.NETWORK_HEADER, offset[family], _SIZE[family]) + nft.mask(network.netmask.packed)
    return load + nft.equal(network.network_address.packed, inverted=inverted)


def _from(name: str, *, inverted: bool = False) -> bytes:
    return nft.meta(nft.META_IIFNAME) + nft.lookup(name, _NUMBER[name], inverted=inverted)


def _to(name: str = "bridges", *, inverted: bool = False) -> bytes:
    return nft.meta(nft.META_OIFNAME) + nft.lookup(name, _NUMBER[name], inverted=inverted)


def _connection(key: int, bits: int) -> bytes:
    return nft.conntrack(key) + nft.mask(struct.pack("=I", bits)) + nft.equal(bytes(4), inverted=True)


def _service(at: int) -> bytes:
    return nft.meta(nft.META_L4PROTO, at) + nft.payload(nft.TRANSPORT_HEADER, 2, 2, at + 1)


def _published(family: int, *, every: bool) -> bytes:
    """Look the packet's destination up in the map of ports; ``every`` asks for ports of all the host's addresses."""
    size, name = _SIZE[family], "ports" if family == FAMILY_IPV4 else "ports6"
    destination = nft.payload(nft.NETWORK_HEADER, _DESTINATION_OFFSET[family], size)
    local = nft.destination_type() + nft.equal(struct.pack("=I", nft.RTN_LOCAL))
    head = local + nft.immediate(bytes(size)) if every else destination
    return _is(family) + head + _service(REG + size // 4) + nft.lookup(name, _NUMBER[name], into=_TARGET)


def _translate(family: int) -> bytes:
    return nft.dnat(family, _TARGET, _TARGET + _SIZE[family] // 4)


def _sets(table: str) -> list[Message]:
    interface, pair = (nft.TYPE_IFNAME,), (nft.TYPE_IFNAME, nft.TYPE_IFNAME)
    version = (nft.TYPE_IFNAME, nft.TYPE_NFPROTO)
    four = (nft.TYPE_IPV4, nft.TYPE_PROTO, nft.TYPE_SERVICE)
    six = (nft.TYPE_IPV6, nft.TYPE_PROTO, nft.TYPE_SERVICE)
    width = nft.IFNAME_SIZE
    plain = (("bridges", interface, width), ("internal", interface, width), ("same", pair, 2 * width))
    by_version = (("direct", version, width + 4), ("routed", version, width + 4))
    services = (("open", four, 12), ("open6", six, 24), ("relayed", four[1:], 8))
    out = [nft.new_set(table, n, kind, size, _NUMBER[n]) for n, kind, size in (*plain, *by_version, *services)]
    out.append(nft.new_map(table, "ports", (four, 12), (four[::2], 8), _NUMBER["ports"]))
    out.append(nft.new_map(table, "ports6", (six, 24), (six[::2], 20), _NUMBER["ports6"]))
    return out


def ruleset(table: str, networks: Sequence[BridgeRules], ports: Iterable[PortRule]) -> list[Message]:
    """The table made to hold exactly these networks and ports, whatever it held; the user's chains are left alone."""
    out = [
        nft.new_table(table),
        nft.new_chain(table, "raw", "filter", nft.PREROUTING, nft.RAW),
        nft.new_chain(table, "published", "filter", nft.PREROUTING, _BEFORE_TRANSLATION),
        nft.new_chain(table, "prerouting", "nat", nft.PREROUTING, nft.DSTNAT),
        nft.new_chain(table, "output", "nat", nft.OUTPUT, nft.DSTNAT),
        nft.new_chain(table, "postrouting", "nat", nft.POSTROUTING, nft.SRCNAT),
        nft.new_chain(table, "forward", "filter", nft.FORWARD, nft.FILTER),
    ]
    out += [nft.new_plain_chain(table, name) for name in USER_CHAINS]
    out += [nft.flush_chain(table, name) for name in CHAINS]
    out += _sets(table)
    out += [nft.flush_set(table, name) for name in SETS]
    out += _members(table, networks)
    out += _static(table)
    for network in networks:
        out += _masquerade(table, network)
    return out + _elements(nft.NEW_ELEMENT, table, ports)


def _elements(kind: int, table: str, ports: Iterable[PortRule]) -> list[Message]:
    by_place: dict[str, list[PortRule]] = {}
    for port in ports:
        by_place.setdefault(port.place, []).append(port)
    return [
        message
        for place, rules in by_place.items()
        for message in nft.elements(
            kind, table, place, ((p.key(), p.data() if kind == nft.NEW_ELEMENT else None) for p in rules)
        )
    ]


def _members(table: str, networks: Sequence[BridgeRules], kind: int = nft.NEW_ELEMENT) -> list[Message]:
    names = [(nft.ifname(n.bridge), n) for n in networks]

    def by_version(versions: str) -> list[bytes]:
        return [name + bytes([_FAMILY[v], 0, 0, 0]) for name, n in names for v in getattr(n, versions)]

    members = {
        "bridges": [name for name, _ in names],
        "internal": [name for name, n in names if n.internal],
        "same": [name * 2 for name, n in names if n.icc],
        "direct": by_version("direct"),
        "routed": by_version("routed"),
    }
    return [
        message
        for place, keys in members.items()
        for message in nft.elements(kind, table, place, ((key, None) for key in keys))
    ]


@functools.cache
def _static(table: str) -> tuple[Message, ...]:
    """The rules that are the same for any networks."""
    return (*_guards(table), *_translation(table), *_forward(table))


def _guards(table: str) -> list[Message]:
    to_loopback, new = _in(LOOPBACK, _DESTINATION_OFFSET), _connection(nft.CT_STATE, nft.STATE_NEW)
    out = [nft.new_rule(table, "raw", _from("bridges"), _is(FAMILY_IPV4), to_loopback, nft.verdict(nft.DROP))]
    for family in (FAMILY_IPV4, FAMILY_IPV6):
        for every in (False, True):
            match = new + _published(family, every=every)
            out.append(nft.new_rule(table, "published", match, nft.jump(USER_PUBLISHED)))
    here = nft.destination_type() + nft.equal(struct.pack("=I", nft.RTN_LOCAL))
    relayed = _is(FAMILY_IPV6) + here + _service(REG) + nft.lookup("relayed", _NUMBER["relayed"])
    out.append(nft.new_rule(table, "published", new, relayed, nft.jump(USER_PUBLISHED)))
    return out


def _translation(table: str) -> list[Message]:
    accept = nft.verdict(nft.ACCEPT)
    from_elsewhere = nft.meta(nft.META_IIFNAME) + nft.equal(nft.ifname("lo"), inverted=True)
    to_loopback = _is(FAMILY_IPV4) + _in(LOOPBACK, _DESTINATION_OFFSET)
    # The kernel does not route ::1 out of lo, whatever it is translated to: let such connections be refused at once.
    to_loopback6 = _is(FAMILY_IPV6) + _in(LOOPBACK6, _DESTINATION_OFFSET)
    out = [
        # Martians must not become published ports of 127.0.0.1: translation comes before the kernel's check.
        nft.new_rule(table, "prerouting", from_elsewhere, to_loopback, accept),
        nft.new_rule(table, "prerouting", to_loopback6, accept),
        nft.new_rule(table, "output", to_loopback6, accept),
    ]
    for chain in ("prerouting", "output"):
        for family in (FAMILY_IPV4, FAMILY_IPV6):
            for every in (False, True):
                out.append(nft.new_rule(table, chain, _published(family, every=every), _translate(family)))
    from_loopback = _is(FAMILY_IPV4) + _in(LOOPBACK, _SOURCE_OFFSET)
    out.append(nft.new_rule(table, "postrouting", _to(), from_loopback, nft.masquerade()))
    return out


@functools.lru_cache(4096)
def _masquerade(table: str, network: BridgeRules) -> tuple[Message, ...]:
    """The rules that one network adds; its bridge's name as their comment tells them from others'."""
    out = []
    name = network.bridge
    for subnet in network.hairpin:
        inside = _is(_FAMILY[subnet.version]) + _in(subnet, _SOURCE_OFFSET)
        translated = _connection(nft.CT_STATUS, nft.STATUS_DNAT)
        out.append(nft.new_rule(table, "postrouting", _to(), translated, inside, nft.masquerade(), comment=name))
    for subnet in network.masquerade:
        inside = _is(_FAMILY[subnet.version]) + _in(subnet, _SOURCE_OFFSET)
        leaving = _to(inverted=True)
        out.append(nft.new_rule(table, "postrouting", leaving, inside, nft.masquerade(), comment=name))
    return tuple(out)


def _forward(table: str) -> list[Message]:
    accept, drop = nft.verdict(nft.ACCEPT), nft.verdict(nft.DROP)
    replies = _connection(nft.CT_STATE, nft.STATE_ESTABLISHED | nft.STATE_RELATED)
    translated = _connection(nft.CT_STATUS, nft.STATUS_DNAT)
    # An interface name fills four registers: the second half of a pair starts at the fifth.
    pair = nft.meta(nft.META_IIFNAME) + nft.meta(nft.META_OIFNAME, REG + 4)
    version = nft.meta(nft.META_OIFNAME) + nft.meta(nft.META_NFPROTO, REG + 4)
    out = [
        nft.new_rule(table, "forward", _from("bridges"), nft.jump(USER_FORWARD)),
        nft.new_rule(table, "forward", _from("bridges", inverted=True), _to(), nft.jump(USER_FORWARD)),
        nft.new_rule(table, "forward", pair, nft.lookup("same", _NUMBER["same"]), accept),
        nft.new_rule(table, "forward", _from("internal"), drop),
        nft.new_rule(table, "forward", _to(), replies, accept),
        nft.new_rule(table, "forward", _to(), translated, accept),
        nft.new_rule(table, "forward", version, nft.lookup("direct", _NUMBER["direct"]), accept),
    ]
    for family, name in ((FAMILY_IPV4, "open"), (FAMILY_IPV6, "open6")):
        size = _SIZE[family]
        key = nft.payload(nft.NETWORK_HEADER, _DESTINATION_OFFSET[family], size) + _service(REG + size // 4)
        opened = _is(family) + key + nft.lookup(name, _NUMBER[name])
        ping = version + nft.lookup("routed", _NUMBER["routed"])
        ping += nft.meta(nft.META_L4PROTO) + nft.equal(bytes([_ICMP[family]]))
        out.append(nft.new_rule(table, "forward", _to(), opened, accept))
        out.append(nft.new_rule(table, "forward", _is(family), ping, accept))
    out.append(nft.new_rule(table, "forward", _to(), drop))
    out.append(nft.new_rule(table, "forward", _from("bridges"), accept))
    return out


class Firewall:
    """The table in this thread's network namespace. For one worker thread."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._netlink = Netlink(NETLINK_NETFILTER)

    def _commit(self, messages: Sequence[Message]) -> None:
        self._netlink.transaction(nft.batch_begin(), messages, nft.batch_end())

    def replace(self, networks: Sequence[BridgeRules], ports: Sequence[PortRule]) -> None:
        """Make the table hold exactly these networks and ports. Raises ``NetlinkError`` and changes nothing then.

        A table of this name with sets of another shape (another version's) is made anew.
        """
        messages = ruleset(self.table, networks, ports)
        try:
            self._commit(messages)
        except NetlinkError as error:
            if error.errno not in (errno.EEXIST, errno.EINVAL, errno.EOPNOTSUPP, errno.EBUSY):
                raise
            self._commit([nft.new_table(self.table), nft.delete_table(self.table), *messages])

    def add(self, network: BridgeRules) -> None:
        """Add one network to the table."""
        self._commit([*_members(self.table, [network]), *_masquerade(self.table, network)])

    def withdraw(self, network: BridgeRules) -> None:
        """Take one network out of the table. Raises ``NetlinkError`` (ENOENT) when it is not as ``add`` left it."""
        query = nft.query_rules(self.table, "postrouting")
        rules = self._netlink.dump(nft.SUBSYSTEM << 8 | nft.GET_RULE, query)
        handles = nft.handles_with(network.bridge, (body for _, body in rules))
        gone = [nft.delete_rule(self.table, "postrouting", handle) for handle in handles]
        self._commit([*gone, *_members(self.table, [network], nft.DELETE_ELEMENT)])

    def publish(self, ports: Sequence[PortRule]) -> None:
        """Add published ports, all or none."""
        self._commit(_elements(nft.NEW_ELEMENT, self.table, ports))

    def unpublish(self, ports: Sequence[PortRule]) -> None:
        """Remove published ports. Idempotent."""
        try:
            self._commit(_elements(nft.DELETE_ELEMENT, self.table, ports))
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            for port in ports:
                self._unpublish_one(port)

    def _unpublish_one(self, port: PortRule) -> None:
        try:
            self._commit(_elements(nft.DELETE_ELEMENT, self.table, (port,)))
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise

    def remove(self) -> None:
        """Delete the table and all in it; if the administrator has rules in it, all but those. Idempotent."""
        if not self._has_user_rules():
            self._commit([nft.new_table(self.table), nft.delete_table(self.table)])
            return
        out = [nft.flush_chain(self.table, name) for name in CHAINS]
        out += [nft.delete_chain(self.table, name) for name in CHAINS]
        try:
            self._commit(out + [nft.delete_set(self.table, name) for name in SETS])
        except NetlinkError as error:
            if error.errno != errno.ENOENT:  # they are gone already: only the user's chains are left
                raise

    def exists(self) -> bool:
        """Whether the table is there."""
        try:
            self._netlink.request(nft.get_table(self.table))
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def _has_user_rules(self) -> bool:
        for chain in USER_CHAINS:
            try:
                rules = self._netlink.dump(nft.SUBSYSTEM << 8 | nft.GET_RULE, nft.query_rules(self.table, chain))
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise
                continue
            if rules:
                return True
        return False

    def close(self) -> None:
        """Close the socket; the table stays."""
        self._netlink.close()
