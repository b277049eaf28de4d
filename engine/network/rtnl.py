"""Links, addresses, routes and neighbours as netlink messages (linux/rtnetlink.h, if_link.h, if_bridge.h).

Rule: functions build ``Message`` values and change nothing; ``Netlink.request`` of the right namespace sends them.
Addresses are ``ipaddress`` objects, hardware addresses six bytes, interface names at most 15 bytes.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from engine.network.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Netlink,
    NetlinkError,
    attribute,
    attributes,
    message,
    nested,
    text,
    u32,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH = 28

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_NET_NS_FD = 18, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_INFO_PEER = 1
MACVLAN_MODE, MACVLAN_FLAGS, IPVLAN_MODE, IPVLAN_FLAGS, VLAN_ID = 1, 2, 1, 2, 1
IFLA_BR_FORWARD_DELAY, IFLA_BR_STP_STATE = 1, 5
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
NDA_DST, NDA_LLADDR = 1, 2
NUD_STALE = 0x04

IFF_UP = 1
RT_TABLE_MAIN = 254
RTPROT_BOOT, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST = 3, 0, 253, 1

LOOPBACK_INDEX = 1

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Subnet = IPv4Network | IPv6Network
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Link:
    """What we ask of an interface."""

    index: int
    name: str
    master: int
    up: bool
    kind: str
    address: bytes


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0, family: int = socket.AF_UNSPEC) -> bytes:
    return struct.pack("=BxHiII", family, 0, index, flags, change)


def new_bridge(name: str, mac: bytes, mtu: int) -> Message:
    """A bridge that is up, without spanning tree (ports forward at once), with a fixed hardware address.

    Without a fixed one a bridge takes its lowest port's, and every cached ARP entry for the gateway is wrong.
    """
    data = nested(IFLA_INFO_DATA, u32(IFLA_BR_FORWARD_DELAY, 0), u32(IFLA_BR_STP_STATE, 0))
    body = _ifinfo(flags=IFF_UP, change=IFF_UP) + text(IFLA_IFNAME, name) + attribute(IFLA_ADDRESS, mac)
    body += u32(IFLA_MTU, mtu) + nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"), data)
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def new_veth(name: str, master: int, mtu: int, peer: str, peer_mac: bytes, peer_ns: int) -> Message:
    """A veth pair: ``name`` up and in bridge ``master``; its ``peer`` born inside namespace ``peer_ns`` (a descriptor).

    The peer stays down until it has its address, so that bringing it up announces that address (arp_notify).
    """
    inside = _ifinfo() + text(IFLA_IFNAME, peer) + attribute(IFLA_ADDRESS, peer_mac)
    inside += u32(IFLA_MTU, mtu) + u32(IFLA_NET_NS_FD, peer_ns)
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "veth"), nested(IFLA_INFO_DATA, nested(VETH_INFO_PEER, inside)))
    body = _ifinfo(flags=IFF_UP, change=IFF_UP) + text(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu)
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + u32(IFLA_MASTER, master) + info)


def bridge_port(name: str, *, hairpin: bool, isolated: bool) -> Message:
    """Flags of bridge port ``name``.

    ``hairpin`` lets a frame leave by the port it came in by: with br_netfilter a container's connection to its own
    published port is translated and bridged, not routed. ``isolated`` ports cannot reach each other.
    """
    flags = attribute(IFLA_BRPORT_MODE, bytes([hairpin])) + attribute(IFLA_BRPORT_ISOLATED, bytes([isolated]))
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_SLAVE_KIND, "bridge"), nested(IFLA_INFO_SLAVE_DATA, flags))
    return message(RTM_NEWLINK, 0, _ifinfo() + text(IFLA_IFNAME, name) + info)


def set_up(index: int) -> Message:
    """Bring an interface up."""
    return message(RTM_NEWLINK, 0, _ifinfo(index, IFF_UP, IFF_UP))


def set_down(index: int) -> Message:
    """Take an interface down: its routes go."""
    return message(RTM_NEWLINK, 0, _ifinfo(index, 0, IFF_UP))


def delete_link(name: str) -> Message:
    """Remove an interface (and a veth's peer) by name. The kernel answers after a grace period."""
    return message(RTM_DELLINK, 0, _ifinfo() + text(IFLA_IFNAME, name))


def new_child(kind: str, name: str, parent: int, mac: bytes, mtu: int, mode: int, flags: int, ns: int) -> Message:
    """A macvlan or ipvlan interface on ``parent``, born inside namespace ``ns``; ``mac`` and ``mtu`` may be empty."""
    if kind == "macvlan":
        data = u32(MACVLAN_MODE, mode) + (attribute(MACVLAN_FLAGS, struct.pack("=H", flags)) if flags else b"")
    else:
        data = attribute(IPVLAN_MODE, struct.pack("=H", mode)) + attribute(IPVLAN_FLAGS, struct.pack("=H", flags))
    body = _ifinfo() + text(IFLA_IFNAME, name) + u32(IFLA_LINK, parent) + u32(IFLA_NET_NS_FD, ns)
    if mac and kind == "macvlan":
        body += attribute(IFLA_ADDRESS, mac)
    if mtu:
        body += u32(IFLA_MTU, mtu)
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, kind), nested(IFLA_INFO_DATA, data))
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + info)


def new_vlan(name: str, parent: int, vlan: int) -> Message:
    """Interface of VLAN number ``vlan`` on ``parent``, up."""
    data = nested(IFLA_INFO_DATA, attribute(VLAN_ID, struct.pack("=H", vlan)))
    body = _ifinfo(flags=IFF_UP, change=IFF_UP) + text(IFLA_IFNAME, name) + u32(IFLA_LINK, parent)
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "vlan"), data)
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + info)


def new_plain(name: str, kind: str) -> Message:
    """An interface of a kind that needs no settings (``dummy``, ``ipvlan`` to be refused), up."""
    body = _ifinfo(flags=IFF_UP, change=IFF_UP) + text(IFLA_IFNAME, name)
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, kind)))


def new_address(index: int, address: Interface) -> Message:
    """Give an interface an address; idempotent. An IPv6 one is usable at once: nobody else can have it."""
    packed, network = address.ip.packed, address.network
    flags = IFA_F_NODAD if address.version == 6 else 0
    scope = RT_SCOPE_LINK if address.ip.is_link_local else RT_SCOPE_UNIVERSE
    body = struct.pack("=BBBBI", FAMILIES[address.version], network.prefixlen, flags, scope, index)
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if address.version == 4 and network.prefixlen < 31:
        body += attribute(IFA_BROADCAST, network.broadcast_address.packed)
    return message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_address(index: int, address: Interface) -> Message:
    """Take an address from an interface."""
    body = struct.pack("=BBBBI", FAMILIES[address.version], address.network.prefixlen, 0, 0, index)
    return message(RTM_DELADDR, 0, body + attribute(IFA_LOCAL, address.ip.packed))


def default_route(gateway: Address, index: int) -> Message:
    """Set the default route; replaces one that is there."""
    head = (FAMILIES[gateway.version], 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    body = struct.pack("=BBBBBBBBI", *head) + attribute(RTA_GATEWAY, gateway.packed) + u32(RTA_OIF, index)
    return message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def default_link(version: int, index: int) -> Message:
    """Make an interface itself the default route: all addresses are taken to be on it."""
    head = (FAMILIES[version], 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_LINK, RTN_UNICAST, 0)
    return message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, struct.pack("=BBBBBBBBI", *head) + u32(RTA_OIF, index))


def neighbour(address: Address, mac: bytes, index: int) -> Message:
    """Tell an interface where ``address`` is, to be confirmed on use: saves the first packet's ARP round."""
    body = struct.pack("=BxxxiHBB", FAMILIES[address.version], index, NUD_STALE, 0, 0)
    body += attribute(NDA_DST, address.packed) + attribute(NDA_LLADDR, mac)
    return message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def _decode_link(body: bytes) -> Link:
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", body)
    name, master, kind, address = "", 0, "", b""
    for key, payload in attributes(body[16:]):
        if key == IFLA_IFNAME:
            name = payload.rstrip(b"\0").decode()
        elif key == IFLA_MASTER:
            (master,) = struct.unpack("=I", payload)
        elif key == IFLA_ADDRESS:
            address = payload
        elif key == IFLA_LINKINFO:
            for inner, value in attributes(payload):
                if inner == IFLA_INFO_KIND:
                    kind = value.rstrip(b"\0").decode()
    return Link(index, name, master, bool(flags & IFF_UP), kind, address)


def find_link(netlink: Netlink, name: str) -> Link | None:
    """The interface called ``name``, or None."""
    try:
        answers = netlink.dump(RTM_GETLINK, _ifinfo() + text(IFLA_IFNAME, name), flags=0)
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return _decode_link(answers[0][1]) if answers else None


def links(netlink: Netlink) -> list[Link]:
    """Every interface of the socket's namespace."""
    return [_decode_link(body) for _, body in netlink.dump(RTM_GETLINK, _ifinfo())]


def route_networks(netlink: Netlink) -> list[tuple[Subnet, int]]:
    """(destination, interface index) of every route of the main table except default and link-local routes."""
    out: list[tuple[Subnet, int]] = []
    for version, family in FAMILIES.items():
        for _, answer in netlink.dump(RTM_GETROUTE, struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)):
            length, table = answer[1], answer[4]
            found = dict(attributes(answer[12:]))
            if table == RT_TABLE_MAIN and RTA_DST in found and length:
                index = struct.unpack("=I", found[RTA_OIF])[0] if RTA_OIF in found else 0
                network = _network(version, found[RTA_DST], length)
                if not network.is_link_local and not network.is_multicast:
                    out.append((network, index))
    return out


def _network(version: int, packed: bytes, length: int) -> Subnet:
    return IPv4Network((packed, length)) if version == 4 else IPv6Network((packed, length))


def addresses(netlink: Netlink) -> list[tuple[Interface, int]]:
    """(address, interface index) of every address that is not link-local."""
    out: list[tuple[Interface, int]] = []
    for version, family in FAMILIES.items():
        for _, answer in netlink.dump(RTM_GETADDR, struct.pack("=BBBBI", family, 0, 0, 0, 0)):
            length, index = answer[1], struct.unpack_from("=I", answer, 4)[0]
            found = dict(attributes(answer[8:]))
            local = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS)
            if local:
                address = IPv4Interface((local, length)) if version == 4 else IPv6Interface((local, length))
                if not address.ip.is_link_local:
                    out.append((address, index))
    return out
