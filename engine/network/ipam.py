"""Addresses: which subnet a network gets, and which address an endpoint.

Rule: an address is taken the moment it is handed out and free only when it is released; the lowest free one is next,
as in Docker. Nothing here touches the kernel or the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Interface, IPv6Network, ip_address, ip_network

from engine.network.model import Address, IpamConfig, Subnet
from oci.errors import Aborted, FailedPrecondition, InvalidArgument, PermissionDenied, ResourceExhausted

LONGEST = {4: 30, 6: 126}
"""The smallest subnets, by IP version: a gateway and a container have to fit."""

UNIQUE_LOCAL_SIZE = 64


class AddressPool:
    """The addresses of one subnet of a network."""

    def __init__(self, config: IpamConfig) -> None:
        """``config`` is complete (``complete_pool``)."""
        self.subnet = ip_network(config.subnet)
        self._range = ip_network(config.ip_range) if config.ip_range else self.subnet
        self._reserved = {int(ip_address(address)) for address in config.auxiliary.values()}
        if config.gateway:
            self._reserved.add(int(ip_address(config.gateway)))
        self._reserved.add(int(self.subnet.network_address))
        if self.subnet.version == 4:
            self._reserved.add(int(self.subnet.broadcast_address))
        self._taken: set[int] = set()
        self._low = int(self._range.network_address)

    def allocate(self, wanted: Address | None = None) -> Address:
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
        number, last = self._low, int(self._range.broadcast_address)
        while number <= last:
            if number not in self._taken and number not in self._reserved:
                self._taken.add(number)
                self._low = number + 1
                return self._range[number - int(self._range.network_address)]
            number += 1
        raise ResourceExhausted(
            f"no available IPv{self.subnet.version} addresses on this network's address pools: {self.subnet}",
            hint="remove containers of this network, or make one with a larger subnet",
        )

    def take(self, address: Address) -> None:
        """Mark an address of a stored endpoint as taken; raises ``Aborted`` if two endpoints have it."""
        if int(address) in self._taken:
            raise Aborted(f"address {address} is recorded for two endpoints")
        self._taken.add(int(address))

    def release(self, address: Address) -> None:
        """Give an address back. Idempotent."""
        number = int(address)
        if number in self._taken:
            self._taken.discard(number)
            if number >= int(self._range.network_address):
                self._low = min(self._low, number)

    @property
    def taken(self) -> frozenset[Address]:
        """The addresses that endpoints have."""
        first = int(self.subnet.network_address)
        return frozenset(self.subnet[number - first] for number in self._taken)


def choose_subnet(pools: Sequence[tuple[str, int]], used: Iterable[Subnet]) -> Subnet:
    """The first network of ``pools`` that overlaps none of ``used``; raises ``ResourceExhausted``."""
    taken = list(used)
    for base_text, size in pools:
        base = ip_network(base_text)
        occupied = [(int(n[0]), int(n[-1])) for n in taken if n.version == base.version]
        step, number = 1 << (base.max_prefixlen - size), int(base.network_address)
        while number <= int(base.broadcast_address):
            end = max((b for a, b in occupied if a <= number + step - 1 and b >= number), default=None)
            if end is None:
                return ip_network((number.to_bytes(base.max_prefixlen // 8, "big"), size))
            number = (end // step + 1) * step
    raise ResourceExhausted(
        "all predefined address pools have been fully subnetted",
        hint="remove unused networks (network prune), give --subnet, or add --default-address-pool to the engine",
    )


def parse_network(text: str, what: str) -> Subnet:
    """``text`` as a network without host bits; raises ``InvalidArgument`` naming ``what``."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise InvalidArgument(f"invalid {what} {text}: {error}") from None


def parse_address(text: str, what: str) -> Address:
    """``text`` as an address; raises ``InvalidArgument`` naming ``what``."""
    try:
        return ip_address(text)
    except ValueError as error:
        raise InvalidArgument(f"invalid {what} {text}: {error}") from None


def complete_pool(
    given: IpamConfig,
    pools: Sequence[tuple[str, int]],
    ours: Sequence[Subnet],
    routed: Sequence[Subnet],
    *,
    gateway: bool = True,
) -> IpamConfig:
    """``given`` with subnet and gateway filled in and checked.

    ``pools`` are the default ones of the wanted family, ``ours`` the subnets of other networks, ``routed`` those the
    host has routes to (only avoided when choosing). Without ``gateway`` none is chosen. Raises ``PermissionDenied``
    (as dockerd: 403) for an overlap, ``InvalidArgument`` for values outside the subnet.
    """
    if given.subnet:
        subnet = parse_network(given.subnet, "subnet")
        if any(subnet.version == other.version and subnet.overlaps(other) for other in ours):
            raise PermissionDenied("invalid pool request: Pool overlaps with other one on this address space")
    else:
        if given.ip_range or given.gateway:
            raise InvalidArgument("invalid IPAM config: a gateway or an IP range needs a subnet")
        subnet = choose_subnet(pools, [*ours, *routed])
    if subnet.prefixlen > LONGEST[subnet.version]:
        raise InvalidArgument(f"invalid subnet {subnet}: it has no room for a gateway and a container")
    if given.ip_range and not _inside(parse_network(given.ip_range, "ip-range"), subnet):
        raise InvalidArgument(f"invalid ip-range {given.ip_range}: it is not inside the subnet {subnet}")
    chosen = str(parse_address(given.gateway, "gateway")) if given.gateway else ""
    if not chosen and gateway:
        chosen = str(_first_gateway(subnet, given))
    for address in (chosen, *(given.auxiliary.values())):
        if address and parse_address(address, "auxiliary address") not in subnet:
            raise InvalidArgument(f"no matching subnet for address {address}: it is not inside {subnet}")
    return IpamConfig(str(subnet), given.ip_range, chosen, given.auxiliary)


def _inside(inner: Subnet, outer: Subnet) -> bool:
    return inner.network_address in outer and inner.broadcast_address in outer


def _first_gateway(subnet: Subnet, given: IpamConfig) -> Address:
    """The first host address that is nobody's; inside the IP range if there is one, as in Docker."""
    inside = parse_network(given.ip_range, "ip-range") if given.ip_range else subnet
    taken = set(given.auxiliary.values())
    for address in inside:
        if address != subnet.network_address and str(address) not in taken:
            return address
    raise InvalidArgument(f"invalid IPAM config: no address of {inside} is left for the gateway")


def unique_local(seed: bytes) -> tuple[str, int]:
    """A default pool of IPv6 networks for this host (RFC 4193): ``fd``, 40 bits of ``seed``, cut into /64."""
    packed = b"\xfd" + seed[:5].ljust(5, b"\0") + bytes(10)
    return str(IPv6Network((packed, 48))), UNIQUE_LOCAL_SIZE


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
        if (
            set(fields) != {"base", "size"}
            or not size.isdigit()
            or not base.prefixlen <= int(size) <= LONGEST[base.version] - 1
        ):
            raise InvalidArgument(
                f"invalid default address pool {text!r}", hint="write base=10.10.0.0/16,size=24 with a size up to 29"
            )
        out.append((str(base), int(size)))
    return tuple(out)
