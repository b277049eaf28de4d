"""The networks there are: looking up, checking and recording them, and the addresses they have given out.

Rule: pure bookkeeping over ``engine.db``; the service makes the kernel agree.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import msgspec

from engine.network.ipam import AddressPool, complete_pool
from engine.network.kernel import BRIDGE_PREFIX, BridgePlan
from engine.network.model import (
    OPTION_DEFAULT,
    OPTION_HOST_BINDING,
    OPTION_ICC,
    OPTION_MASQUERADE,
    OPTION_MTU,
    OPTION_NAME,
    PREDEFINED,
    IpamConfig,
    Network,
    NetworkOptions,
)
from engine.store import Store
from oci.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied, Unimplemented

KIND = "network"
IFNAME_LIMIT = 15
_NOT_BUILT = frozenset({"overlay", "macvlan", "ipvlan"})


class CreateIpam(msgspec.Struct, frozen=True):
    """``IPAM`` of a create request."""

    driver: str | None = msgspec.field(default=None, name="Driver")
    config: list[IpamConfig] | None = msgspec.field(default=None, name="Config")
    options: dict[str, str] | None = msgspec.field(default=None, name="Options")


class CreateRequest(msgspec.Struct, frozen=True, rename="pascal"):
    """Body of ``POST /networks/create``."""

    name: str = ""
    driver: str | None = None
    internal: bool | None = None
    attachable: bool | None = None
    ingress: bool | None = None
    config_only: bool | None = None
    scope: str | None = None
    enable_ipv6: bool | None = msgspec.field(default=None, name="EnableIPv6")
    enable_ipv4: bool | None = msgspec.field(default=None, name="EnableIPv4")
    ipam: CreateIpam | None = msgspec.field(default=None, name="IPAM")
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


def now_text() -> str:
    """The current time as RFC 3339 with nanoseconds, UTC."""
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanos:09d}Z"


class NetworkRegistry:
    """Networks by id, and an ``AddressPool`` for each bridge."""

    def __init__(self, store: Store, options: NetworkOptions) -> None:
        self._store = store
        self._options = options
        self._networks: dict[str, Network] = {}
        self._pools: dict[str, AddressPool] = {}
        for _, body in store.all(KIND):
            self._remember(msgspec.json.decode(body, type=Network))

    def all(self) -> list[Network]:
        """Every network, newest last."""
        return list(self._networks.values())

    def bridges(self) -> list[Network]:
        """Networks that are a bridge in the kernel."""
        return [n for n in self._networks.values() if n.bridge]

    def _remember(self, network: Network) -> None:
        self._networks[network.id] = network
        if network.bridge:
            self._pools[network.id] = AddressPool(network.pools[0])

    def record(self, network: Network) -> None:
        """Write a network down, before its bridge is made."""
        self._store.put(KIND, network.id, msgspec.json.encode(network))
        self._remember(network)

    def forget(self, network: Network) -> None:
        """Delete a network's record, after its bridge is gone."""
        self._store.delete(KIND, network.id)
        self._networks.pop(network.id, None)
        self._pools.pop(network.id, None)

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

    def named(self, name: str) -> Network | None:
        """The network called exactly ``name``."""
        return next((n for n in self._networks.values() if n.name == name), None)

    def pool(self, network: Network) -> AddressPool:
        """The addresses of a bridge network."""
        return self._pools[network.id]

    def release(self, network_id: str, address: str) -> None:
        """Give an address back, if its network still exists. Idempotent."""
        pool = self._pools.get(network_id)
        if pool is not None and address:
            pool.release(IPv4Address(address))

    def bridge_plan(self, network: Network) -> BridgePlan:
        """How the kernel shall have this network's bridge."""
        return BridgePlan(network.bridge, network.gateway_interface, network.mtu(self._options.mtu))

    def ensure_predefined(self, routed: Sequence[IPv4Network], movable: bool) -> None:
        """Record ``bridge``, ``host`` and ``none`` if they are not there.

        ``routed`` are the networks the host has elsewhere; with ``movable`` (no container is on it) the default
        bridge follows a changed ``bip`` or bridge name, or gets out of the way of a network the host has joined.
        """
        for name, driver in (("host", "host"), ("none", "null")):
            if self.named(name) is None:
                self.record(Network(id=secrets.token_hex(32), name=name, driver=driver, created=now_text()))
        current = self.named("bridge")
        if current is not None and (not movable or self._still_fits(current, routed)):
            return
        identifier = current.id if current is not None else secrets.token_hex(32)
        created = current.created if current is not None else now_text()
        if current is not None:
            self._networks.pop(current.id)
        pool = complete_pool(self._given_pool(), self._options.pools, self._own_subnets(), routed)
        self.record(
            Network(
                id=identifier,
                name="bridge",
                driver="bridge",
                created=created,
                options=self._default_options(),
                pools=(pool,),
                bridge=self._options.bridge,
            )
        )

    def _still_fits(self, current: Network, routed: Sequence[IPv4Network]) -> bool:
        if current.bridge != self._options.bridge or current.options != self._default_options():
            return False
        if self._options.bip:
            return current.gateway_interface == IPv4Interface(self._options.bip)
        return not any(current.subnet.overlaps(other) for other in routed)

    def _given_pool(self) -> IpamConfig:
        if not self._options.bip:
            return IpamConfig()
        interface = IPv4Interface(self._options.bip)
        return IpamConfig(str(interface.network), gateway=str(interface.ip))

    def _default_options(self) -> dict[str, str]:
        return {
            OPTION_DEFAULT: "true",
            OPTION_ICC: str(self._options.icc).lower(),
            OPTION_MASQUERADE: str(self._options.masquerade).lower(),
            OPTION_HOST_BINDING: self._options.host_binding,
            OPTION_NAME: self._options.bridge,
            OPTION_MTU: str(self._options.mtu),
        }

    def _own_subnets(self) -> list[IPv4Network]:
        return [n.subnet for n in self.bridges()]

    def plan(self, body: CreateRequest, routed: Sequence[IPv4Network]) -> Network:
        """The network a create request asks for, checked but not recorded.

        Raises ``InvalidArgument``, ``PermissionDenied`` (predefined names, overlaps), ``AlreadyExists``,
        ``NotFound`` (unknown driver) and ``Unimplemented``.
        """
        self._check(body)
        ipam = body.ipam or CreateIpam()
        given = [c for c in ipam.config or [] if ":" not in c.subnet]
        if len(given) != len(ipam.config or []):
            raise Unimplemented("IPv6 subnets are not supported by this engine's bridge networks")
        if len(given) > 1:
            raise InvalidArgument("bridge networks take one IPv4 subnet", hint="make one network for each subnet")
        pool = complete_pool(
            given[0] if given else IpamConfig(),
            self._options.pools,
            self._own_subnets(),
            routed,
        )
        identifier = secrets.token_hex(32)
        options = dict(body.options or {})
        return Network(
            id=identifier,
            name=body.name,
            driver="bridge",
            created=now_text(),
            internal=bool(body.internal),
            attachable=bool(body.attachable),
            options=options,
            labels=dict(body.labels or {}),
            ipam_driver=ipam.driver or "default",
            ipam_options=ipam.options,
            pools=(pool,),
            bridge=self._bridge_name(options, identifier),
        )

    def _bridge_name(self, options: dict[str, str], identifier: str) -> str:
        name = options.get(OPTION_NAME) or f"{BRIDGE_PREFIX}{identifier[:11]}"
        if len(name.encode()) > IFNAME_LIMIT or "/" in name or name in (".", "..") or any(c.isspace() for c in name):
            raise InvalidArgument(f"invalid bridge name {name!r}: at most {IFNAME_LIMIT} bytes, no slash, no space")
        if any(n.bridge == name for n in self.bridges()):
            raise PermissionDenied(f"bridge name {name} is already used by another network")
        return name

    def _check(self, body: CreateRequest) -> None:
        if not body.name.strip() or body.name != body.name.strip() or "/" in body.name:
            raise InvalidArgument(f"invalid network name {body.name!r}: it must not be empty or hold a slash")
        if body.name in (*PREDEFINED, "default"):
            raise PermissionDenied(f"operation is not permitted on predefined {body.name} network")
        driver = body.driver or "bridge"
        if driver in ("host", "null", "none"):
            raise PermissionDenied(f'only one instance of "{driver}" network is allowed')
        if driver in _NOT_BUILT:
            raise Unimplemented(f"network driver {driver} is not supported by this engine", hint="use bridge")
        if driver != "bridge":
            raise NotFound(f'could not find plugin {driver} in v1 plugin registry: plugin "{driver}" not found')
        if body.ipam is not None and body.ipam.driver not in (None, "", "default"):
            raise NotFound(f'could not find IPAM plugin: plugin "{body.ipam.driver}" not found')
        if body.scope not in (None, "", "local"):
            raise InvalidArgument(f"network scope {body.scope} needs a swarm, and this node is in none")
        for wanted, what in (
            (body.ingress, "an ingress"),
            (body.config_only, "a config-only"),
            (body.enable_ipv6, "an IPv6"),
        ):
            if wanted:
                raise Unimplemented(f"{what} network is not supported by this engine")
        if body.enable_ipv4 is False:
            raise Unimplemented("a network without IPv4 is not supported by this engine")
        if self.named(body.name) is not None:
            raise AlreadyExists(f"network with name {body.name} already exists")
