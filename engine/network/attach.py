"""Connecting networks to containers, and disconnecting them, after they were created.

Rule: the choice is recorded for the container's next start whether or not it runs; a running container gets or loses
the interface at once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from engine.network import planning
from engine.network.model import Endpoint, Network, Sandbox
from engine.network.service import NetworkService, NetworkTarget
from oci.errors import Internal, PermissionDenied

_DEVICE = re.compile(r"eth(\d+)")


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
    if network.driver == "null" or mode == "none":
        raise PermissionDenied(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        )


async def _plug(service: NetworkService, sandbox: Sandbox, network: Network, settings: dict[str, Any]) -> None:
    numbers = [int(match[1]) for e in sandbox.endpoints if (match := _DEVICE.fullmatch(e.device))]
    endpoint = planning.make_endpoint(service.registry, network, settings, f"eth{max(numbers, default=-1) + 1}")
    service.keep(msgspec.structs.replace(sandbox, endpoints=(*sandbox.endpoints, endpoint)))
    had_gateway = planning.gateway_network(service.wanted(sandbox.request)) is not None
    plan = planning.plug_plan(service.registry, endpoint, None if had_gateway or network.internal else network)
    assert plan is not None  # only bridge networks get here
    try:
        await service.run(service.kernel.plug, plan, service.pin_path(sandbox.request.container_id), None)
    except BaseException as error:
        service.keep(sandbox)
        service.reaper.add((endpoint,))
        if isinstance(error, OSError):
            raise Internal(f"cannot connect {sandbox.request.name} to {network.name}: {error.strerror}") from error
        raise


async def disconnect(service: NetworkService, reference: str, container: str, *, force: bool) -> None:
    """``POST /networks/{id}/disconnect``; with ``force`` not being connected is no error."""
    network = service.registry.find(reference)
    target = service.target(container)
    if target.request.mode == "host" or planning.shared_with(target.request):
        raise PermissionDenied("container cannot be disconnected from host network or another container's network")
    if not any(n.id == network.id for n, _ in service.wanted(target.request)):
        if force:
            return
        raise PermissionDenied(f"container {target.request.container_id} is not connected to network {network.name}")
    container_id = target.request.container_id
    sandbox = service.sandbox(container_id)
    endpoint = _endpoint(sandbox, network)
    service.note_attachment(container_id, network.id, None)
    if sandbox is not None and endpoint is not None:
        await asyncio.shield(_unplug(service, sandbox, endpoint))
        service.tell("disconnect", network, target.request)


def _endpoint(sandbox: Sandbox | None, network: Network) -> Endpoint | None:
    endpoints = sandbox.endpoints if sandbox is not None else ()
    return next((e for e in endpoints if e.network_id == network.id), None)


async def _unplug(service: NetworkService, sandbox: Sandbox, endpoint: Endpoint) -> None:
    """Ports, then the interface, then the record; the default route moves to what is left."""
    rules = [p.rule(endpoint.address) for p in endpoint.ports]
    await service.run(service.kernel.unpublish, rules)
    if endpoint.veth:
        await service.reaper.delete((endpoint.veth,))
    planning.drop(service.registry, service.ports, [endpoint])
    left = msgspec.structs.replace(sandbox, endpoints=tuple(e for e in sandbox.endpoints if e.id != endpoint.id))
    service.keep(left)
    gateway = planning.gateway_network(service.wanted(sandbox.request))
    remaining = _endpoint(left, gateway) if gateway is not None else None
    if gateway is not None and remaining is not None:
        pin = service.pin_path(sandbox.request.container_id)
        await service.run(service.kernel.set_default_route, pin, remaining.device, gateway.gateway)
