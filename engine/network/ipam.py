"""Addresses: which subnet a network gets, and which address an endpoint.

Rule: an address is taken the moment it is handed out and free only when it is released; the lowest free one is next,
as in Docker. Nothing here touches the kernel or the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network, NetmaskValueError

from engine.network.model import IpamConfig
from oci.errors import Aborted, FailedPrecondition, InvalidArgument, PermissionDenied, ResourceExhausted


class AddressPool:
    """The addresses of one bridge network."""

    def __init__(self, config: IpamConfig) -> None:
        """``config`` is complete (``complete_pool``)."""
        self.subnet = IPv4Network(config.subnet)
        self._range = IPv4Network(config.ip_range) if config.ip_range else self.subnet
        first, last = int(self.subnet.network_address), int(self.subnet.broadcast_address)
        self._reserved = {int(IPv4Address(config.gateway))}
        self._reserved.update(int(IPv4Address(address)) for address in config.auxiliary.values())
        if self.subnet.prefixlen < 31:
            self._reserved.update((first, last))
        self._taken: set[int] = set()
        self._low = int(self._range.network_address)

    def allocate(self, wanted: IPv4Address | None = None) -> IPv4Address:
        """Take ``wanted``, or the lowest free address of the range.

        Raises ``FailedPrecondition("Address already in use")``, ``ResourceExhausted`` when none is left and
        ``InvalidArgument`` when ``wanted`` is not of this subnet.
        """
        if wanted is not None:
            if wanted not in self.subnet:
                raise InvalidArgument(
                    f"invalid config for network: no configured subnet contains IP address {wanted}",
                    hint=f"the network's subnet is {self.subnet}",
                )
            if int(wanted) in self._taken or int(wanted) in self._reserved:
                raise FailedPrecondition("Address already in use", hint=f"{wanted} belongs to another endpoint")
            self._taken.add(int(wanted))
            return wanted
        for number in range(self._low, int(self._range.broadcast_address) + 1):
            if number not in self._taken and number not in self._reserved:
                self._taken.add(number)
                self._low = number + 1
                return IPv4Address(number)
        raise ResourceExhausted(
            f"no available IPv4 addresses on this network's address pools: {self.subnet}",
            hint="remove containers of this network, or make one with a larger subnet",
        )

    def take(self, address: IPv4Address) -> None:
        """Mark an address of a stored endpoint as taken; raises ``Aborted`` if two endpoints have it."""
        if int(address) in self._taken:
            raise Aborted(f"address {address} is recorded for two endpoints")
        self._taken.add(int(address))

    def release(self, address: IPv4Address) -> None:
        """Give an address back. Idempotent."""
        number = int(address)
        if number in self._taken:
            self._taken.discard(number)
            if number >= int(self._range.network_address):
                self._low = min(self._low, number)

    @property
    def taken(self) -> frozenset[IPv4Address]:
        """The addresses that endpoints have."""
        return frozenset(IPv4Address(number) for number in self._taken)


def choose_subnet(pools: Sequence[tuple[str, int]], used: Iterable[IPv4Network]) -> IPv4Network:
    """The first network of ``pools`` that overlaps none of ``used``; raises ``ResourceExhausted``."""
    occupied = sorted({(int(n.network_address), int(n.broadcast_address)) for n in used})
    for base, size in pools:
        for subnet in IPv4Network(base).subnets(new_prefix=size):
            first, last = int(subnet.network_address), int(subnet.broadcast_address)
            if all(end < first or start > last for start, end in occupied):
                return subnet
    raise ResourceExhausted(
        "all predefined address pools have been fully subnetted",
        hint="remove unused networks (network prune), or give --subnet",
    )


def parse_network(text: str, what: str) -> IPv4Network:
    """``text`` as an IPv4 network without host bits; raises ``InvalidArgument`` naming ``what``."""
    try:
        return IPv4Network(text)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        if ":" in text:
            raise InvalidArgument(f"invalid {what} {text}: IPv6 networks are not supported by this engine") from None
        raise InvalidArgument(f"invalid {what} {text}: {error}") from None


def parse_address(text: str, what: str) -> IPv4Address:
    """``text`` as an IPv4 address; raises ``InvalidArgument`` naming ``what``."""
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise InvalidArgument(f"invalid {what} {text}: {error}") from None


def complete_pool(
    given: IpamConfig, pools: Sequence[tuple[str, int]], ours: Sequence[IPv4Network], routed: Sequence[IPv4Network]
) -> IpamConfig:
    """``given`` with subnet and gateway filled in and checked.

    ``ours`` are the subnets of other networks, ``routed`` those the host has routes to (only avoided when choosing).
    Raises ``PermissionDenied`` (as dockerd: 403) for an overlap, ``InvalidArgument`` for values outside the subnet.
    """
    if given.subnet:
        subnet = parse_network(given.subnet, "subnet")
        if any(subnet.overlaps(other) for other in ours):
            raise PermissionDenied("invalid pool request: Pool overlaps with other one on this address space")
    else:
        if given.ip_range or given.gateway:
            raise InvalidArgument("invalid IPAM config: a gateway or an IP range needs a subnet")
        subnet = choose_subnet(pools, [*ours, *routed])
    if subnet.prefixlen > 30:
        raise InvalidArgument(f"invalid subnet {subnet}: it has no room for a gateway and a container")
    gateway = parse_address(given.gateway, "gateway") if given.gateway else _first_gateway(subnet, given)
    if given.ip_range and not parse_network(given.ip_range, "ip-range").subnet_of(subnet):
        raise InvalidArgument(f"invalid ip-range {given.ip_range}: it is not inside the subnet {subnet}")
    for address in (gateway, *(parse_address(text, "auxiliary address") for text in given.auxiliary.values())):
        if address not in subnet:
            raise InvalidArgument(f"no matching subnet for address {address}: it is not inside {subnet}")
    return IpamConfig(str(subnet), given.ip_range, str(gateway), given.auxiliary)


def _first_gateway(subnet: IPv4Network, given: IpamConfig) -> IPv4Address:
    """The first host address that is nobody's; inside the IP range if there is one, as in Docker."""
    inside = parse_network(given.ip_range, "ip-range") if given.ip_range else subnet
    taken = set(given.auxiliary.values())
    for address in inside:
        if address != subnet.network_address and str(address) not in taken:
            return address
    raise InvalidArgument(f"invalid IPAM config: no address of {inside} is left for the gateway")


def parse_bip(text: str) -> IPv4Interface:
    """``--bip`` as an address with its network; raises ``InvalidArgument``."""
    try:
        interface = IPv4Interface(text)
    except ValueError as error:
        raise InvalidArgument(
            f"invalid bridge address {text}: {error}", hint="for example --bip 172.17.0.1/16"
        ) from None
    if interface.network.prefixlen > 30 or interface.ip == interface.network.network_address:
        raise InvalidArgument(f"invalid bridge address {text}: not the address of a host in a subnet of /30 or larger")
    return interface


def parse_pools(texts: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """``base=10.10.0.0/16,size=24`` values as (base, size); raises ``InvalidArgument``."""
    out: list[tuple[str, int]] = []
    for text in texts:
        fields = dict(part.partition("=")[::2] for part in text.split(","))
        base = parse_network(fields.get("base", ""), "base of a default address pool")
        size = fields.get("size", "")
        if set(fields) != {"base", "size"} or not size.isdigit() or not base.prefixlen <= int(size) <= 29:
            raise InvalidArgument(
                f"invalid default address pool {text!r}", hint="write base=10.10.0.0/16,size=24 with a size up to 29"
            )
        out.append((str(base), int(size)))
    return tuple(out)
