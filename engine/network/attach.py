"""Connecting networks to containers, and disconnecting them, after they were created.

Rule: the choice is recorded for the container's next start whether or not it runs; a running container gets or loses
the interface at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import msgspec

from engine.network import following, planning
from engine.network.model import Endpoint, Network, Sandbox
from oci.errors import Internal, NotFound, PermissionDenied

if TYPE_CHECKING:
    from engine.interfaces import NetworkTarget
    from engine.network.service import NetworkService


async def connect(service: NetworkService, reference: str, container: str, config: Mapping[str, Any]) -> None:
    """``POST /networks/{id}/connect``. Raises ``NotFound``, ``PermissionDenied``, ``InvalidArgument``."""
    network = service.registry.find(reference)
    target = service.target(container)
    settings = dict(config)
    _check(network, target)
    planning.check_config(network, settings)
    if any(n.id == network.id for n, _ in service.wanted(target.request)):
        name = target.request.name
        raise PermissionDenied(f"endpoint with name {name} already exists in network {network.name}")
    container_id = target.request.container_id
    sandbox = service.sandbox(container_id)
    if target.running and sandbox is not None:
        await _plug(service, sandbox, network, settings)
        service.tell("connect", network, target.request)
    service.note_attachment(container_id, network.id, settings)


def _check(network: Network, target: NetworkTarget) -> None:
    mode = target.request.mode
    if network.driver == "host":
        raise PermissionDenied(
            "cannot connect container to host network - container must be created in host network mode"
        )
    if mode == "host" or planning.shared_with(target.request):
        raise PermissionDenied(
            "container sharing network namespace with another container or host "
            "cannot be connected to any other network"
        )
    if network.config_only:
        raise PermissionDenied(f"network {network.name} is a configuration network: containers cannot be on it")
    if network.driver == "null" or mode == "none":
        raise PermissionDenied(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        )


async def _plug(service: NetworkService, sandbox: Sandbox, network: Network, settings: dict[str, Any]) -> None:
    devices = [e.device for e in sandbox.endpoints if e.device]
    networks = service.wanted(sandbox.request)
    before = planning.gateway_networks(networks)
    after = planning.gateway_networks([*networks, (network, settings)])
    endpoint = planning.make_endpoint(service.registry, network, settings, devices)
    # Ports that found no gateway network at start are published on the first one that comes.
    if not any(e.ports for e in sandbox.endpoints):
        try:
            endpoint = planning.with_ports(service.ports, sandbox.request, network, endpoint, after)
        except BaseException:
            planning.drop(service.registry, service.ports, [endpoint])
            raise
    # A running container keeps its default route, on which its published ports answer, unless told otherwise.
    urgent = (settings.get("GwPriority") or 0) > 0
    gateways = {v: n for v, n in after.items() if v not in before or urgent}
    connected = msgspec.structs.replace(sandbox, endpoints=(*sandbox.endpoints, endpoint))
    service.keep(connected)
    plan = planning.plug_plan(service.registry, endpoint, gateways, service.options)
    assert plan is not None  # networks without an interface were refused
    pin = service.pin_path(sandbox.request.container_id)
    try:
        await service.run(service.kernel.plug, plan, pin, None)
        await service.run(service.kernel.publish, endpoint.port_rules())
        await service.tell_names(connected)
    except BaseException as error:
        await asyncio.shield(_take_back(service, sandbox, endpoint, pin))
        if isinstance(error, OSError):
            raise Internal(f"cannot connect {sandbox.request.name} to {network.name}: {error.strerror}") from error
        raise
    following.rewrite(service, sandbox, connected)


async def _take_back(service: NetworkService, sandbox: Sandbox, endpoint: Endpoint, pin: str) -> None:
    """A connect has failed: the interface may or may not be there."""
    service.keep(sandbox)
    service.ports.release(endpoint.id, endpoint.ports)
    if endpoint.veth:
        service.reaper.add((endpoint,))
        return
    with contextlib.suppress(OSError):
        await service.run(service.kernel.unplug_inside, pin, (endpoint.device,))
    service.registry.release(endpoint.network_id, endpoint.addresses)


async def disconnect(service: NetworkService, reference: str, container: str, *, force: bool) -> None:
    """``POST /networks/{id}/disconnect``; ``force`` is for clients that send it: nothing is in the way here."""
    network = service.registry.find(reference)
    target = service.target(container)
    if target.request.mode == "host" or planning.shared_with(target.request):
        raise PermissionDenied("container cannot be disconnected from host network or another container's network")
    if not any(n.id == network.id for n, _ in service.wanted(target.request)):
        raise PermissionDenied(f"container {target.request.container_id} is not connected to network {network.name}")
    container_id = target.request.container_id
    sandbox = service.sandbox(container_id)
    endpoint = sandbox.on(network.id) if sandbox is not None else None
    service.note_attachment(container_id, network.id, None)
    if sandbox is not None and endpoint is not None:
        await asyncio.shield(_unplug(service, sandbox, endpoint))
        service.tell("disconnect", network, target.request)


async def settle(service: NetworkService, sandbox: Sandbox) -> None:
    """At the daemon's start: undo a connect and finish a disconnect that a kill interrupted.

    An endpoint on a network that the container is not to be on is one or the other. The host's end of its interface is
    swept as nobody's; addresses and ports are free at once.
    """
    try:
        wanted = {network.id for network, _ in service.wanted(sandbox.request)}
    except NotFound:
        return
    gone = [e for e in sandbox.endpoints if e.network_id not in wanted]
    if not gone:
        return
    pin = service.pin_path(sandbox.request.container_id)
    for endpoint in gone:
        if endpoint.device and not endpoint.veth:
            with contextlib.suppress(OSError):
                await service.run(service.kernel.unplug_inside, pin, (endpoint.device,))
    planning.drop(service.registry, service.ports, gone)
    left = msgspec.structs.replace(sandbox, endpoints=tuple(e for e in sandbox.endpoints if e not in gone))
    service.keep(left)
    following.rewrite(service, sandbox, left)
    with contextlib.suppress(OSError):
        await _route(service, left)


async def _unplug(service: NetworkService, sandbox: Sandbox, endpoint: Endpoint) -> None:
    """Ports, then the interface, then the record; default routes move to what is left."""
    container_id = sandbox.request.container_id
    pin = service.pin_path(container_id)
    await service.run(service.kernel.unpublish, endpoint.port_rules())
    if endpoint.veth:
        await service.reaper.delete((endpoint.veth,))
    elif endpoint.device:
        await service.run(service.kernel.unplug_inside, pin, (endpoint.device,))
    planning.drop(service.registry, service.ports, [endpoint])
    left = msgspec.structs.replace(sandbox, endpoints=tuple(e for e in sandbox.endpoints if e.id != endpoint.id))
    service.keep(left)
    await service.tell_names(left)
    following.rewrite(service, sandbox, left)
    await _route(service, left)


async def _route(service: NetworkService, sandbox: Sandbox) -> None:
    """Point a running container's default routes at the networks that it has left."""
    pin = service.pin_path(sandbox.request.container_id)
    for version, network in planning.gateway_networks(service.wanted(sandbox.request)).items():
        remaining = sandbox.on(network.id)
        gateway = ""
        if remaining is not None:
            gateway = network.gateway_of(remaining.address6 if version == 6 else remaining.address)
        if remaining is not None and gateway:
            await service.run(service.kernel.set_default_route, pin, remaining.device, [ip_address(gateway)])
