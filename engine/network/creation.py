"""From the body of ``POST /networks/create`` to a network, or to the reason why there cannot be one.

Rule: everything is checked before anything is recorded; refusals are in Docker's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from engine.network.drivers import DRIVERS, OPTION_PARENT, Driver
from engine.network.ipam import complete_pool
from engine.network.model import PREDEFINED, IpamConfig, Network, Subnet
from oci.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied, Unimplemented

if TYPE_CHECKING:
    from engine.network.registry import NetworkRegistry


class CreateIpam(msgspec.Struct, frozen=True):
    """``IPAM`` of a create request."""

    driver: str | None = msgspec.field(default=None, name="Driver")
    config: list[IpamConfig] | None = msgspec.field(default=None, name="Config")
    options: dict[str, str] | None = msgspec.field(default=None, name="Options")


class ConfigFrom(msgspec.Struct, frozen=True, rename="pascal"):
    """The config-only network that gives a new one its settings."""

    network: str = ""


class CreateRequest(msgspec.Struct, frozen=True, rename="pascal"):
    """Body of ``POST /networks/create``."""

    name: str = ""
    driver: str | None = None
    internal: bool | None = None
    attachable: bool | None = None
    ingress: bool | None = None
    config_only: bool | None = None
    config_from: ConfigFrom | None = None
    scope: str | None = None
    enable_ipv6: bool | None = msgspec.field(default=None, name="EnableIPv6")
    enable_ipv4: bool | None = msgspec.field(default=None, name="EnableIPv4")
    ipam: CreateIpam | None = msgspec.field(default=None, name="IPAM")
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


def plan(registry: NetworkRegistry, body: CreateRequest, routed: Sequence[Subnet]) -> Network:
    """The network that ``body`` asks for; ``routed`` are the networks the host has elsewhere.

    Raises ``InvalidArgument``, ``PermissionDenied`` (predefined names, overlaps), ``AlreadyExists``, ``NotFound``
    (unknown driver) and ``Unimplemented``.
    """
    _check_name(registry, body)
    if body.config_only:
        return _config_only(registry, body)
    if body.config_from is not None and body.config_from.network:
        body = _configured(registry, body)
    driver = _driver(body.driver or "bridge")
    if body.enable_ipv4 is False and not body.enable_ipv6:
        raise InvalidArgument("IPv4 or IPv6 must be enabled")
    ipam = body.ipam or CreateIpam()
    identifier, created = registry.new_identity()
    network = Network(
        id=identifier,
        name=body.name,
        driver=driver.name,
        created=created,
        internal=bool(body.internal),
        attachable=bool(body.attachable),
        ipv4=body.enable_ipv4 is not False,
        ipv6=bool(body.enable_ipv6),
        config_from=body.config_from.network if body.config_from is not None else "",
        options=dict(body.options or {}),
        labels=dict(body.labels or {}),
        ipam_driver=ipam.driver or "default",
        ipam_options=ipam.options,
    )
    network = msgspec.structs.replace(network, bridge=driver.interface(network))
    network = msgspec.structs.replace(network, pools=_pools(registry, network, ipam.config or [], routed))
    driver.check(network)
    _check_interface(registry, network)
    return network


def chooses_subnet(body: CreateRequest) -> bool:
    """Whether a subnet is to be chosen for the network, because none was given for an IP version it has."""
    given = {pool.version for pool in (body.ipam.config if body.ipam is not None else None) or () if pool.subnet}
    wanted = {4} if body.enable_ipv4 is not False else set()
    return body.config_from is not None or not given >= (wanted | ({6} if body.enable_ipv6 else set()))


def _check_name(registry: NetworkRegistry, body: CreateRequest) -> None:
    if not body.name.strip() or body.name != body.name.strip() or "/" in body.name:
        raise InvalidArgument(f"invalid network name {body.name!r}: it must not be empty or hold a slash")
    if body.name in (*PREDEFINED, "default"):
        raise PermissionDenied(f"operation is not permitted on predefined {body.name} network")
    if body.scope not in (None, "", "local"):
        raise InvalidArgument(f"network scope {body.scope} needs a swarm, and this node is in none")
    if body.ingress:
        raise Unimplemented("an ingress network needs a swarm, and this node is in none")
    if body.ipam is not None and body.ipam.driver not in (None, "", "default"):
        raise NotFound(f'could not find IPAM plugin: plugin "{body.ipam.driver}" not found')
    if registry.named(body.name) is not None:
        raise AlreadyExists(f"network with name {body.name} already exists")


def _driver(name: str) -> Driver:
    if name in ("host", "null", "none"):
        raise PermissionDenied(f'only one instance of "{name}" network is allowed')
    if name == "overlay":
        raise Unimplemented("network driver overlay needs a swarm, and this node is in none", hint="use bridge")
    driver = DRIVERS.get(name)
    if driver is None:
        raise NotFound(f'could not find plugin {name} in v1 plugin registry: plugin "{name}" not found')
    return driver


def _pools(
    registry: NetworkRegistry, network: Network, given: Sequence[IpamConfig], routed: Sequence[Subnet]
) -> tuple[IpamConfig, ...]:
    """Complete pools, IPv4 first; one of each enabled version where none was given. Others are left out, as dockerd."""
    ours = registry.subnets()
    out: list[IpamConfig] = []
    for version, enabled in ((4, network.ipv4), (6, network.ipv6)):
        if not enabled:
            continue
        wanted = [pool for pool in given if pool.version == version] or [IpamConfig()]
        for pool in wanted:
            complete = complete_pool(pool, registry.default_pools(version), ours, routed)
            out.append(complete)
            ours = [*ours, complete.network]
    return tuple(out)


def _check_interface(registry: NetworkRegistry, network: Network) -> None:
    for other in registry.connecting():
        if other.bridge != network.bridge:
            continue
        if "bridge" not in (network.driver, other.driver):
            raise PermissionDenied(
                f"network {other.name} is already using parent interface {network.bridge}",
                hint="give each network a VLAN of its own (-o parent=eth0.10)",
            )
        raise PermissionDenied(f"bridge name {network.bridge} is already used by another network")


def _config_only(registry: NetworkRegistry, body: CreateRequest) -> Network:
    """A network that only lends its settings to others (``--config-only``)."""
    if body.driver not in (None, "", "null") and body.driver not in DRIVERS:
        raise NotFound(f'could not find plugin {body.driver} in v1 plugin registry: plugin "{body.driver}" not found')
    identifier, created = registry.new_identity()
    ipam = body.ipam or CreateIpam()
    return Network(
        id=identifier,
        name=body.name,
        driver="null",
        created=created,
        config_only=True,
        internal=bool(body.internal),
        ipv4=body.enable_ipv4 is not False,
        ipv6=bool(body.enable_ipv6),
        options=dict(body.options or {}),
        labels=dict(body.labels or {}),
        ipam_options=ipam.options,
        pools=tuple(ipam.config or ()),
    )


def _configured(registry: NetworkRegistry, body: CreateRequest) -> CreateRequest:
    """``body`` with the settings of the config-only network it names."""
    assert body.config_from is not None
    source = registry.find(body.config_from.network)
    if not source.config_only:
        raise PermissionDenied(f"{source.name} is not a configuration network: it was not made with --config-only")
    if body.options or (body.ipam is not None and body.ipam.config) or body.enable_ipv6 or body.internal:
        raise PermissionDenied(
            "user specified configurations are not supported if the network depends on a configuration network"
        )
    return msgspec.structs.replace(
        body,
        options=source.options,
        ipam=CreateIpam(config=list(source.pools), options=source.ipam_options),
        internal=source.internal,
        enable_ipv4=source.ipv4,
        enable_ipv6=source.ipv6,
        labels={**source.labels, **(body.labels or {})},
    )


def vlan_parent(network: Network) -> bool:
    """Whether the network's parent may be a VLAN that has to be made."""
    return network.driver != "bridge" and "." in network.options.get(OPTION_PARENT, "")
