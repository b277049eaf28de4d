"""From what a container asks for to the interfaces it gets: pure decisions, no kernel, no disk.

Rule: an ``Endpoint`` that leaves here holds its addresses and its host ports; whoever drops it gives them back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

import msgspec

from engine.interfaces import SandboxRequest
from engine.network.drivers import check_interface_name, driver_of, endpoint_sysctls
from engine.network.ipam import parse_address
from engine.network.kernel import VETH_PREFIX
from engine.network.model import (
    OPTION_DEVICE,
    OPTION_HOST_BINDING,
    Address,
    Endpoint,
    Network,
    NetworkOptions,
    Published,
    Sandbox,
    mac_bytes,
    mac_of,
)
from engine.network.plans import PlugPlan
from engine.network.ports import WILDCARD, WILDCARD6, PortTable, host_ips, requests_of
from engine.network.registry import NetworkRegistry
from oci.errors import Internal, InvalidArgument, NotFound

CONTAINER_PREFIX = "container:"
OPTION_DEVICE_PREFIX = "com.docker.network.container_iface_prefix"

Attachments = Mapping[str, dict[str, Any] | None]
"""Networks connected (settings) or disconnected (None) by API after create, by network id."""

Wanted = tuple[Network, dict[str, Any]]

Gateways = dict[int, Network]
"""The network that gives the default route, by IP version."""


def shared_with(request: SandboxRequest) -> str:
    """The container whose namespace this one joins, or ""."""
    return request.mode.removeprefix(CONTAINER_PREFIX) if request.mode.startswith(CONTAINER_PREFIX) else ""


def wanted_networks(registry: NetworkRegistry, request: SandboxRequest, attachments: Attachments) -> list[Wanted]:
    """The networks of a container with their endpoint settings, the one of its mode first.

    Raises ``NotFound("network x not found")``.
    """
    if shared_with(request):
        return []
    out: dict[str, Wanted] = {}
    # A network that it was disconnected from may be removed; its name alone is left then.
    left = any(config is None and not registry.has(identifier) for identifier, config in attachments.items())
    for reference, config in {request.mode: None, **request.endpoints}.items():
        try:
            network = registry.find(_named(reference))
        except NotFound:
            if left:
                continue
            raise
        if network.driver == "host" and reference == request.mode:
            return [(network, {})]
        if network.connects or reference == request.mode:
            out[network.id] = (network, dict(config or {}))
    for identifier, attached in attachments.items():
        if attached is None:
            out.pop(identifier, None)
            continue
        try:
            out[identifier] = (registry.find(identifier), attached)
        except NotFound:
            continue
    return list(out.values())


def _named(mode: str) -> str:
    return "bridge" if mode in ("", "default") else mode


def check(registry: NetworkRegistry, request: SandboxRequest, attachments: Attachments) -> None:
    """Raise what would make the container's network fail for reasons that are known now."""
    ports = requests_of(request)
    if shared_with(request):
        if ports:
            raise InvalidArgument("conflicting options: port publishing and the container type network mode")
        return
    if request.mac_address:
        _mac(request.mac_address)
    for network, config in wanted_networks(registry, request, attachments):
        if network.config_only:
            raise InvalidArgument(f"network {network.name} is a configuration network: containers cannot be on it")
        check_config(network, config)


def check_config(network: Network, config: Mapping[str, Any]) -> None:
    """Raise ``InvalidArgument`` for endpoint settings that this network cannot give."""
    for version in (4, 6):
        address = fixed_address(config, version)
        if address is None or not network.connects:
            continue
        if network.default_bridge:
            raise InvalidArgument(
                "invalid config for network bridge: invalid endpoint settings: "
                "user specified IP address is supported on user defined networks only"
            )
        if network.pool_of(address) is None:
            raise InvalidArgument(
                f"invalid config for network {network.name}: invalid endpoint settings: "
                f"no configured subnet contains IP address {address}"
            )
    if config.get("MacAddress"):
        _mac(config["MacAddress"])
    options = config.get("DriverOpts") or {}
    if options.get(OPTION_DEVICE):
        check_interface_name(options[OPTION_DEVICE], "interface name")
    endpoint_sysctls(Endpoint(id="", network_id="", network="", device="eth0", config=dict(config)))


def _mac(text: str) -> str:
    try:
        return mac_bytes(text).hex(":")
    except ValueError as error:
        raise InvalidArgument(f"invalid MAC address {text}: {error}") from None


def fixed_address(config: Mapping[str, Any], version: int) -> Address | None:
    """The address of IP version 4 or 6 that endpoint settings ask for."""
    text = (config.get("IPAMConfig") or {}).get(f"IPv{version}Address")
    if not text:
        return None
    address = parse_address(text, f"IPv{version} address")
    if address.version != version:
        raise InvalidArgument(f"invalid IPv{version} address: {text}")
    return address


def fixed_addresses(config: Mapping[str, Any]) -> list[Address]:
    """The addresses that endpoint settings ask for."""
    found = (fixed_address(config, version) for version in (4, 6))
    return [address for address in found if address is not None]


def gateway_networks(networks: Sequence[Wanted]) -> Gateways:
    """What gives the default routes: highest ``GwPriority``, then by name (Docker API 1.48)."""
    out: Gateways = {}
    for version in (4, 6):
        candidates = [
            (-(config.get("GwPriority") or 0), n.name, n)
            for n, config in networks
            if not n.internal and any(pool.gateway for pool in n.pools_of(version)) and n.connects
        ]
        if candidates:
            out[version] = min(candidates, key=lambda c: c[:2])[2]
    return out


def make_endpoint(
    registry: NetworkRegistry, network: Network, config: dict[str, Any], devices: Sequence[str], mac_address: str = ""
) -> Endpoint:
    """An endpoint with addresses of ``network`` (none on host and none); ``devices`` are names that are taken."""
    identifier = os.urandom(32).hex()
    if not network.connects:
        return Endpoint(id=identifier, network_id=network.id, network=network.name, config=config)
    addresses: list[str] = []
    try:
        for version, enabled in ((4, network.ipv4), (6, network.ipv6)):
            if enabled:
                addresses.append(registry.allocate(network, version, fixed_address(config, version)))
        given = config.get("MacAddress") or mac_address
        mac = _mac(given) if given else mac_of(ip_address(addresses[0]))
        device = _device(network, config, devices)
    except BaseException:
        registry.release(network.id, addresses)
        raise
    return Endpoint(
        id=identifier,
        network_id=network.id,
        network=network.name,
        address=next((a for a in addresses if ":" not in a), ""),
        address6=next((a for a in addresses if ":" in a), ""),
        mac="" if network.driver == "ipvlan" else mac,
        veth=f"{VETH_PREFIX}{identifier[:10]}" if network.driver == "bridge" else "",
        device=device,
        config=config,
    )


def _device(network: Network, config: Mapping[str, Any], taken: Sequence[str]) -> str:
    asked = (config.get("DriverOpts") or {}).get(OPTION_DEVICE)
    if asked:
        if asked in taken:
            raise InvalidArgument(f"interface name {asked} is already used in this container")
        return str(asked)
    prefix = network.options.get(OPTION_DEVICE_PREFIX) or "eth"
    number = 0
    while f"{prefix}{number}" in taken:
        number += 1
    return f"{prefix}{number}"


def make_sandbox(
    registry: NetworkRegistry, table: PortTable, request: SandboxRequest, networks: Sequence[Wanted]
) -> Sandbox:
    """A sandbox whose endpoints hold addresses and host ports; nothing is held when it raises."""
    gateways = gateway_networks(networks)
    made: list[Endpoint] = []
    try:
        for position, (network, config) in enumerate(networks):
            mac = request.mac_address if position == 0 else ""
            made.append(make_endpoint(registry, network, config, [e.device for e in made], mac))
            made[-1] = with_ports(table, request, network, made[-1], gateways)
    except BaseException:
        drop(registry, table, made)
        raise
    return Sandbox(id=os.urandom(32).hex(), request=request, endpoints=tuple(made), shared_with=shared_with(request))


def with_ports(
    table: PortTable, request: SandboxRequest, network: Network, endpoint: Endpoint, gateways: Gateways
) -> Endpoint:
    """The endpoint holding the request's host ports of the IP versions whose default route it gives.

    Raises ``Internal`` in Docker's words.
    """
    versions = [version for version, gateway in gateways.items() if gateway.id == network.id]
    if not versions or not driver_of(network).publishes or endpoint.ports:
        return endpoint
    modes = {version: network.gateway_mode(version) for version in versions}
    binding = network.options.get(OPTION_HOST_BINDING) or WILDCARD
    opened: list[Published] = []
    wanted = []
    for port in requests_of(request):
        ips = host_ips(port, binding, [v for v in versions if modes[v].startswith("nat")])
        if ips:
            wanted.append((port, ips))
        opened += [
            Published(WILDCARD6 if version == 6 else WILDCARD, 0, port.port, port.protocol)
            for version in versions
            if modes[version] == "routed"
        ]
    try:
        held = table.reserve(endpoint.id, wanted, endpoint.address or endpoint.address6)
    except Internal as error:
        raise Internal(
            f"driver failed programming external connectivity on endpoint {request.name} ({endpoint.id}): "
            f"{error.message}"
        ) from error
    relayed = [] if endpoint.address6 else table.relays(held, requests_of(request))
    return msgspec.structs.replace(endpoint, ports=(*held, *relayed, *dict.fromkeys(opened)))


def drop(registry: NetworkRegistry, table: PortTable, endpoints: Sequence[Endpoint]) -> None:
    """Give addresses and host ports back. Idempotent."""
    for endpoint in endpoints:
        table.release(endpoint.id, endpoint.ports)
        registry.release(endpoint.network_id, endpoint.addresses)


def plug_plan(
    registry: NetworkRegistry, endpoint: Endpoint, gateways: Gateways, options: NetworkOptions
) -> PlugPlan | None:
    """How the kernel shall make this endpoint; None for host and none."""
    network = registry.find(endpoint.network_id)
    versions = [version for version, gateway in gateways.items() if gateway.id == network.id]
    return driver_of(network).plug(network, endpoint, versions, options)


def take(registry: NetworkRegistry, endpoint: Endpoint) -> None:
    """Mark a stored endpoint's addresses as taken; raises ``NotFound`` if its network is gone, ``Aborted`` if taken."""
    registry.take(registry.find(endpoint.network_id).id, endpoint.addresses)
