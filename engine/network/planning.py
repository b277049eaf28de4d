"""From what a container asks for to the interfaces it gets: pure decisions, no kernel, no disk.

Rule: an ``Endpoint`` that leaves here holds its address and its host ports; whoever drops it gives both back.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import msgspec

from engine.interfaces import SandboxRequest
from engine.network.ipam import parse_address
from engine.network.kernel import VETH_PREFIX, PlugPlan
from engine.network.model import OPTION_HOST_BINDING, Endpoint, Network, Sandbox, mac_bytes, mac_of
from engine.network.ports import WILDCARD, PortTable, requests_of
from engine.network.registry import NetworkRegistry
from oci.errors import Internal, InvalidArgument, NotFound

CONTAINER_PREFIX = "container:"

Attachments = Mapping[str, dict[str, Any] | None]
"""Networks connected (settings) or disconnected (None) by API after create, by network id."""

Wanted = tuple[Network, dict[str, Any]]


def shared_with(request: SandboxRequest) -> str:
    """The container whose namespace this one joins, or ""."""
    return request.mode.removeprefix(CONTAINER_PREFIX) if request.mode.startswith(CONTAINER_PREFIX) else ""


def wanted_networks(registry: NetworkRegistry, request: SandboxRequest, attachments: Attachments) -> list[Wanted]:
    """The networks of a container with their endpoint settings, the one of its mode first.

    Raises ``NotFound("network x not found")``.
    """
    if shared_with(request):
        return []
    first = registry.find(_named(request.mode))
    out: dict[str, Wanted] = {first.id: (first, {})}
    if not first.bridge:
        return list(out.values())
    for reference, config in request.endpoints.items():
        network = registry.find(_named(reference))
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
        check_config(network, config)


def check_config(network: Network, config: Mapping[str, Any]) -> None:
    """Raise ``InvalidArgument`` for endpoint settings that this network cannot give."""
    address = fixed_address(config)
    if address is not None and network.default_bridge:
        raise InvalidArgument(
            "invalid config for network bridge: invalid endpoint settings: "
            "user specified IP address is supported on user defined networks only"
        )
    if address is not None and network.bridge and address not in network.subnet:
        raise InvalidArgument(
            f"invalid config for network {network.name}: invalid endpoint settings: "
            f"no configured subnet contains IP address {address}"
        )
    if (config.get("IPAMConfig") or {}).get("IPv6Address"):
        raise InvalidArgument(f"network {network.name} has no IPv6 subnet: no IPv6 address can be given")
    if config.get("MacAddress"):
        _mac(config["MacAddress"])


def _mac(text: str) -> str:
    try:
        return mac_bytes(text).hex(":")
    except ValueError as error:
        raise InvalidArgument(f"invalid MAC address {text}: {error}") from None


def fixed_address(config: Mapping[str, Any]) -> IPv4Address | None:
    """The address that endpoint settings ask for."""
    text = (config.get("IPAMConfig") or {}).get("IPv4Address")
    return parse_address(text, "IPv4 address") if text else None


def gateway_network(networks: list[Wanted]) -> Network | None:
    """The network that gives the default route: highest ``GwPriority``, then by name (Docker API 1.48)."""
    candidates = [
        (-(config.get("GwPriority") or 0), n.name, n) for n, config in networks if n.bridge and not n.internal
    ]
    return min(candidates, key=lambda c: c[:2])[2] if candidates else None


def make_endpoint(
    registry: NetworkRegistry, network: Network, config: dict[str, Any], device: str, mac_address: str = ""
) -> Endpoint:
    """An endpoint with an address of ``network`` (none on host and none networks)."""
    identifier = secrets.token_hex(32)
    if not network.bridge:
        return Endpoint(id=identifier, network_id=network.id, network=network.name, config=config)
    address = registry.pool(network).allocate(fixed_address(config))
    try:
        given = config.get("MacAddress") or mac_address
        mac = _mac(given) if given else mac_of(address)
    except BaseException:
        registry.pool(network).release(address)
        raise
    return Endpoint(
        id=identifier,
        network_id=network.id,
        network=network.name,
        address=str(address),
        mac=mac,
        veth=f"{VETH_PREFIX}{identifier[:10]}",
        device=device,
        config=config,
    )


def make_sandbox(
    registry: NetworkRegistry, table: PortTable, request: SandboxRequest, networks: list[Wanted]
) -> Sandbox:
    """A sandbox whose endpoints hold addresses and host ports; nothing is held when it raises."""
    gateway = gateway_network(networks)
    made: list[Endpoint] = []
    try:
        for position, (network, config) in enumerate(networks):
            mac = request.mac_address if position == 0 else ""
            endpoint = make_endpoint(registry, network, config, f"eth{position}", mac)
            made.append(endpoint)
            if network is gateway:
                made[-1] = with_ports(table, request, network, endpoint)
    except BaseException:
        drop(registry, table, made)
        raise
    return Sandbox(id=secrets.token_hex(32), request=request, endpoints=tuple(made))


def with_ports(table: PortTable, request: SandboxRequest, network: Network, endpoint: Endpoint) -> Endpoint:
    """The endpoint holding the request's host ports; raises ``Internal`` in Docker's words."""
    wanted = requests_of(request, network.options.get(OPTION_HOST_BINDING) or WILDCARD)
    try:
        ports = table.reserve(endpoint.id, wanted, endpoint.address)
    except Internal as error:
        raise Internal(
            f"driver failed programming external connectivity on endpoint {request.name} ({endpoint.id}): "
            f"{error.message}"
        ) from error
    return msgspec.structs.replace(endpoint, ports=ports)


def drop(registry: NetworkRegistry, table: PortTable, endpoints: list[Endpoint]) -> None:
    """Give addresses and host ports back. Idempotent."""
    for endpoint in endpoints:
        table.release(endpoint.id, endpoint.ports)
        registry.release(endpoint.network_id, endpoint.address)


def plug_plan(registry: NetworkRegistry, endpoint: Endpoint, gateway: Network | None) -> PlugPlan | None:
    """How the kernel shall make this endpoint; None for host and none."""
    if not endpoint.veth:
        return None
    network = registry.find(endpoint.network_id)
    return PlugPlan(
        bridge=registry.bridge_plan(network),
        veth=endpoint.veth,
        device=endpoint.device,
        address=IPv4Interface((endpoint.address, network.subnet.prefixlen)),
        mac=mac_bytes(endpoint.mac),
        gateway=network.gateway if gateway is not None and gateway.id == network.id else None,
        isolated=not network.icc,
        hairpin=bool(endpoint.ports),
    )


def take(registry: NetworkRegistry, endpoint: Endpoint) -> None:
    """Mark a stored endpoint's address as taken; raises ``NotFound`` if its network is gone, ``Aborted`` if taken."""
    network = registry.find(endpoint.network_id)
    if endpoint.address:
        registry.pool(network).take(IPv4Address(endpoint.address))
