"""Which names a container can ask for, and what they mean to it.

Rule: names belong to networks; a container sees those of the networks it is on and the links of its own. No I/O.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from engine.network.dns.relay import Relay

Address = IPv4Address | IPv6Address


class Membership(NamedTuple):
    """A container on one network. ``names`` are what others on it call the container, lower case, the first its own."""

    network_id: str
    network: str
    addresses: tuple[Address, ...]
    names: tuple[str, ...]


class Record(NamedTuple):
    """A container that asks this server.

    ``links`` are names only this container uses, by alias. ``servers`` are asked from within the container's namespace
    (``--dns``), ``host_servers`` from the host's; without either the host's resolv.conf holds. Without ``forward`` no
    question leaves the machine. Without ``asks`` the container has no server of ours, only ``relays`` on the host's
    IPv6 addresses.
    """

    id: str
    pin: str
    memberships: tuple[Membership, ...]
    links: dict[str, str]
    forward: bool
    servers: tuple[str, ...]
    host_servers: tuple[str, ...]
    asks: bool
    relays: tuple[Relay, ...]


def decode(document: dict[str, Any]) -> Record:
    """A record from the engine's JSON; raises ``ValueError``, ``KeyError`` or ``TypeError``."""
    return Record(
        id=str(document["id"]),
        pin=str(document["pin"]),
        memberships=tuple(_membership(network) for network in document["networks"]),
        links={str(alias).lower(): str(name).lower() for alias, name in document["links"].items()},
        forward=bool(document["forward"]),
        servers=tuple(document["servers"]),
        host_servers=tuple(document["host_servers"]),
        asks=bool(document["asks"]),
        relays=tuple(_relay(*values) for values in document["relays"]),
    )


def _relay(host_port: Any, address: Any, port: Any, listens: Any, protocol: Any) -> Relay:
    return Relay(int(host_port), str(address), int(port), str(listens), str(protocol))


def _membership(network: dict[str, Any]) -> Membership:
    names = dict.fromkeys(name.lower() for name in network["names"])
    addresses = tuple(ip_address(text) for text in network["addresses"])
    return Membership(network["id"], network["name"].lower(), addresses, tuple(names))


class Table:
    """Every record, indexed by network and name."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._names: dict[tuple[str, str], dict[str, tuple[Address, ...]]] = {}
        self._reverse: dict[tuple[str, Address], str] = {}
        self._turn: dict[tuple[str, str], int] = {}

    def __contains__(self, container_id: str) -> bool:
        return container_id in self._records

    def get(self, container_id: str) -> Record | None:
        """A container's record."""
        return self._records.get(container_id)

    def ids(self) -> list[str]:
        """Every container there is a record of."""
        return list(self._records)

    def put(self, record: Record) -> None:
        """Add or replace a container."""
        self.drop(record.id)
        self._records[record.id] = record
        for member in record.memberships:
            for name in member.names:
                self._names.setdefault((member.network_id, name), {})[record.id] = member.addresses
            for address in member.addresses if member.names else ():
                self._reverse[member.network_id, address] = f"{member.names[0]}.{member.network}"

    def drop(self, container_id: str) -> None:
        """Forget a container. Idempotent."""
        record = self._records.pop(container_id, None)
        for member in record.memberships if record is not None else ():
            for name in member.names:
                key = (member.network_id, name)
                owners = self._names.get(key, {})
                owners.pop(container_id, None)
                if not owners:
                    self._names.pop(key, None)
                    self._turn.pop(key, None)
            for address in member.addresses:
                self._reverse.pop((member.network_id, address), None)

    def addresses(self, record: Record, name: str) -> list[Address] | None:
        """What ``name`` means to a container, all its addresses, another one first each time; None if nothing."""
        name = name.rstrip(".").lower()
        name = record.links.get(name, name)
        for member in record.memberships:
            found = self._on(member.network_id, name)
            if found is None and name.endswith(f".{member.network}"):
                found = self._on(member.network_id, name[: -len(member.network) - 1])
            if found is not None:
                return found
        return None

    def _on(self, network_id: str, name: str) -> list[Address] | None:
        owners = self._names.get((network_id, name))
        if not owners:
            return None
        groups = list(owners.values())
        turn = self._turn.get((network_id, name), 0)
        self._turn[network_id, name] = turn + 1
        first = turn % len(groups)
        return [address for group in (*groups[first:], *groups[:first]) for address in group]

    def name_of(self, record: Record, address: Address) -> str | None:
        """The name of the container at ``address``, with its network's behind a dot."""
        found = (self._reverse.get((member.network_id, address)) for member in record.memberships)
        return next((name for name in found if name is not None), None)
