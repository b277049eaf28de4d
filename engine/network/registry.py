"""The networks there are: looking up, checking and recording them, and the addresses they have given out.

Rule: pure bookkeeping over ``engine.db``; the service makes the kernel agree.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Network, ip_address

import msgspec

from engine.network import creation
from engine.network.creation import CreateRequest
from engine.network.drivers import driver_of
from engine.network.firewall import BridgeRules
from engine.network.ipam import AddressPool, complete_pool, unique_local
from engine.network.model import (
    OPTION_DEFAULT,
    OPTION_HOST_BINDING,
    OPTION_ICC,
    OPTION_MASQUERADE,
    OPTION_MTU,
    OPTION_NAME,
    Address,
    IpamConfig,
    Network,
    NetworkOptions,
    Subnet,
)
from engine.network.plans import HostPlan
from engine.store import Store
from oci.errors import InvalidArgument, NotFound, ResourceExhausted

KIND = "network"
META_KIND = "network-meta"
UNIQUE_LOCAL_KEY = "unique-local"


def now_text() -> str:
    """The current time as RFC 3339 with nanoseconds, UTC."""
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanos:09d}Z"


class NetworkRegistry:
    """Networks by id, and an ``AddressPool`` for each of their subnets."""

    def __init__(self, store: Store, options: NetworkOptions) -> None:
        self._store = store
        self._options = options
        self._networks: dict[str, Network] = {}
        self._pools: dict[str, list[AddressPool]] = {}
        for _, body in store.all(KIND):
            self._remember(msgspec.json.decode(body, type=Network))

    def all(self) -> list[Network]:
        """Every network, newest last."""
        return list(self._networks.values())

    def connecting(self) -> list[Network]:
        """Networks that have an interface on the host."""
        return [n for n in self._networks.values() if n.connects]

    def bridges(self) -> list[Network]:
        """Networks that are a bridge in the kernel."""
        return [n for n in self.connecting() if n.driver == "bridge"]

    def _remember(self, network: Network) -> None:
        self._networks[network.id] = network
        if network.connects:
            self._pools[network.id] = [AddressPool(pool) for pool in network.pools]

    def record(self, network: Network) -> None:
        """Write a network down, before its bridge is made."""
        self._store.put(KIND, network.id, msgspec.json.encode(network))
        self._remember(network)

    def hide(self, network: Network) -> None:
        """Let nobody find a network any more that is about to go; its record stays until ``forget``."""
        self._networks.pop(network.id, None)
        self._pools.pop(network.id, None)

    def forget(self, network: Network) -> None:
        """Delete a network's record, after its bridge is gone."""
        self._store.delete(KIND, network.id)
        self.hide(network)

    def find(self, reference: str) -> Network:
        """The network with this id, name, or unambiguous id prefix; raises ``NotFound`` in Docker's words."""
        exact = self._networks.get(reference) or self.named(reference)
        if exact is not None:
            return exact
        matches = [n for n in self._networks.values() if reference and n.id.startswith(reference)]
        if len(matches) > 1:
            raise InvalidArgument(f"network {reference} is ambiguous ({len(matches)} matches found based on ID prefix)")
        if not matches:
            raise NotFound(f"network {reference} not found")
        return matches[0]

    def has(self, network_id: str) -> bool:
        """Whether there is a network with exactly this id."""
        return network_id in self._networks

    def named(self, name: str) -> Network | None:
        """The network called exactly ``name``."""
        return next((n for n in self._networks.values() if n.name == name), None)

    # Addresses

    def allocate(self, network: Network, version: int, wanted: Address | None = None) -> str:
        """Take an address of IP version 4 or 6 for an endpoint; "" where the network has none of that version.

        Raises as ``AddressPool.allocate``.
        """
        if network.id not in self._pools:
            raise NotFound(f"network {network.name} not found")  # removed since it was looked up
        pools = [p for p in self._pools[network.id] if p.subnet.version == version]
        if wanted is not None:
            pools = [p for p in pools if wanted in p.subnet] or pools[:1]
        for position, pool in enumerate(pools):
            try:
                return str(pool.allocate(wanted))
            except ResourceExhausted:
                if position == len(pools) - 1:
                    raise
        return ""

    def _pool(self, network_id: str, address: Address) -> AddressPool | None:
        return next((p for p in self._pools.get(network_id, ()) if address in p.subnet), None)

    def take(self, network_id: str, addresses: Sequence[str]) -> None:
        """Mark a stored endpoint's addresses as taken; raises ``Aborted`` for one that has an owner."""
        for text in addresses:
            pool = self._pool(network_id, ip_address(text))
            if pool is not None:
                pool.take(ip_address(text))

    def release(self, network_id: str, addresses: Sequence[str]) -> None:
        """Give addresses back, if their network still exists. Idempotent."""
        for text in addresses:
            pool = self._pool(network_id, ip_address(text))
            if pool is not None:
                pool.release(ip_address(text))

    # Plans

    def host_plan(self, network: Network) -> HostPlan | None:
        """How the host shall have this network's interface."""
        return driver_of(network).host(network, self._options)

    def host_plans(self) -> list[HostPlan]:
        """Every interface that networks need on the host."""
        plans = (self.host_plan(n) for n in self.connecting())
        return [plan for plan in plans if plan is not None]

    def rules(self, without: str = "") -> list[BridgeRules]:
        """What the firewall shall know, leaving one network (by id) out."""
        found = (driver_of(n).rules(n) for n in self.connecting() if n.id != without)
        return [rules for rules in found if rules is not None]

    # Predefined networks

    def ensure_predefined(self, routed: Sequence[Subnet], movable: bool) -> None:
        """Record ``bridge``, ``host`` and ``none`` if they are not there.

        ``routed`` are the networks the host has elsewhere; with ``movable`` (no container is on it) the default
        bridge follows changed flags, or gets out of the way of a network the host has joined.
        """
        for name, driver in (("host", "host"), ("none", "null")):
            if self.named(name) is None:
                self.record(Network(id=os.urandom(32).hex(), name=name, driver=driver, created=now_text()))
        current = self.named("bridge")
        if current is not None and (not movable or self._still_fits(current, routed)):
            return
        identifier = current.id if current is not None else os.urandom(32).hex()
        created = current.created if current is not None else now_text()
        if current is not None:
            self._networks.pop(current.id)
        self.record(
            Network(
                id=identifier,
                name="bridge",
                driver="bridge",
                created=created,
                ipv6=self._options.ipv6,
                options=self._default_options(),
                pools=self._default_pools(routed),
                bridge=self._options.bridge,
            )
        )

    def _default_pools(self, routed: Sequence[Subnet]) -> tuple[IpamConfig, ...]:
        four = complete_pool(self._given_pool(), self.default_pools(4), self.subnets(), routed)
        if not self._options.ipv6:
            return (four,)
        six = IpamConfig(subnet=self._options.fixed_cidr_v6)
        return four, complete_pool(six, self.default_pools(6), self.subnets(), routed)

    def _still_fits(self, current: Network, routed: Sequence[Subnet]) -> bool:
        if current.bridge != self._options.bridge or current.options != self._default_options():
            return False
        if current.ipv6 != self._options.ipv6:
            return False
        wanted_six = self._options.fixed_cidr_v6
        if wanted_six and [p.network for p in current.pools_of(6)] != [IPv6Network(wanted_six)]:
            return False
        (four,) = current.pools_of(4)
        if four.ip_range != self._options.fixed_cidr:
            return False
        if self._options.bip:
            return current.interface(four.gateway) == IPv4Interface(self._options.bip)
        return not any(n.version == 4 and four.network.overlaps(n) for n in routed)

    def _given_pool(self) -> IpamConfig:
        if not self._options.bip:
            return IpamConfig(subnet=self._options.fixed_cidr)
        interface = IPv4Interface(self._options.bip)
        return IpamConfig(str(interface.network), self._options.fixed_cidr, gateway=str(interface.ip))

    def _default_options(self) -> dict[str, str]:
        return {
            OPTION_DEFAULT: "true",
            OPTION_ICC: str(self._options.icc).lower(),
            OPTION_MASQUERADE: str(self._options.masquerade).lower(),
            OPTION_HOST_BINDING: self._options.host_binding,
            OPTION_NAME: self._options.bridge,
            OPTION_MTU: str(self._options.mtu),
        }

    def subnets(self) -> list[Subnet]:
        """The subnets of every network."""
        return [pool.network for n in self.connecting() for pool in n.pools]

    def default_pools(self, version: int) -> list[tuple[str, int]]:
        """The daemon's pools of one IP version; a unique local prefix of this host's own where none were given."""
        pools = [pool for pool in self._options.pools if (":" in pool[0]) == (version == 6)]
        return pools or ([self._unique_local()] if version == 6 else [])

    def _unique_local(self) -> tuple[str, int]:
        seed = self._store.get(META_KIND, UNIQUE_LOCAL_KEY)
        if seed is None:
            seed = os.urandom(5)
            self._store.put(META_KIND, UNIQUE_LOCAL_KEY, seed)
        return unique_local(seed)

    def plan(self, body: CreateRequest, routed: Sequence[Subnet]) -> Network:
        """The network a create request asks for, checked but not recorded; raises as ``creation.plan``."""
        return creation.plan(self, body, routed)

    def new_identity(self) -> tuple[str, str]:
        """(id, time of creation) of a network about to be made."""
        return os.urandom(32).hex(), now_text()
