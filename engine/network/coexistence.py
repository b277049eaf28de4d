"""Other firewalls on the host that keep packets from containers: found and named, never changed.

Rule: in nftables a packet has to be accepted by every base chain, so a table of another program that drops what is
forwarded drops containers' packets, whatever ours says. ufw does that, and so does Docker where it is installed beside.
Chains of ``iptables-legacy`` are not seen here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from engine.network import nft
from engine.network.drivers import BRIDGE_PREFIX
from engine.network.netlink import NETLINK_NETFILTER, Netlink, attributes

if TYPE_CHECKING:
    from engine.network.service import NetworkService

FAMILIES = {nft.FAMILY_INET: "inet", nft.FAMILY_IPV4: "ip", nft.FAMILY_IPV6: "ip6"}
FIREWALLD = "firewalld"
_TABLE, _NAME, _HOOK, _POLICY = 1, 3, 4, 5
_HOOK_NUMBER = 1


async def warnings(service: NetworkService) -> list[str]:
    """Lines of ``docker info`` about firewalls that are in the way."""
    if not service.options.firewall:
        return []
    try:
        return await service.run(obstacles, service.options.table, service.options.bridge)
    except OSError:
        return []


def obstacles(own: str, bridge: str) -> list[str]:
    """A warning for each table but ``own`` that drops forwarded packets and does not know our bridges."""
    netlink = Netlink(NETLINK_NETFILTER)
    try:
        chains = (body for _, body in netlink.dump(nft.SUBSYSTEM << 8 | nft.GET_CHAIN, nft.query_all()))
        return [
            _warning(FAMILIES[family], table, chain, bridge)
            for family, table, chain in _droppers(chains)
            if table != own and not _knows(_rules(netlink, family, table), bridge)
        ]
    finally:
        netlink.close()


def _droppers(chains: Iterable[bytes]) -> Iterator[tuple[int, str, str]]:
    """(family, table, chain) of base chains that drop what is forwarded if no rule says otherwise."""
    for body in chains:
        found = dict(attributes(body[4:]))
        hook = dict(attributes(found.get(_HOOK, b""))).get(_HOOK_NUMBER, b"")
        table, name = (found.get(key, b"").rstrip(b"\0").decode(errors="replace") for key in (_TABLE, _NAME))
        # firewalld's policy is accept, and its last rule rejects.
        drops = found.get(_POLICY) == struct.pack(">I", nft.DROP) or (table, name) == (FIREWALLD, "filter_FORWARD")
        if body[0] in FAMILIES and hook == struct.pack(">I", nft.FORWARD) and drops:
            yield body[0], table, name


def _rules(netlink: Netlink, family: int, table: str) -> Iterator[bytes]:
    query = nft.query_table(family, table)
    return (body for _, body in netlink.dump(nft.SUBSYSTEM << 8 | nft.GET_RULE, query))


def _knows(rules: Iterable[bytes], bridge: str) -> bool:
    names = (bridge.encode(), BRIDGE_PREFIX.encode())
    return any(name in body for body in rules for name in names)


def _warning(family: str, table: str, chain: str, bridge: str) -> str:
    return (
        f"WARNING: table {family} {table} drops forwarded packets (chain {chain}) and has no rule about {bridge}: "
        f"containers do not reach other machines, nor these their published ports (docs/networking.md, Other firewalls)"
    )
