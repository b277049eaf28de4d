"""Networks and endpoints as Docker's JSON objects (Engine API 1.51, with the older fields clients still read).

Rule: pure functions of records; keys and empty values are exactly Docker's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from engine.interfaces import SandboxRequest
from engine.network.model import Endpoint, Network, Sandbox
from engine.network.ports import parse_port


def network_view(network: Network, sandboxes: Iterable[Sandbox] = ()) -> dict[str, Any]:
    """``Network``: the answer of inspect; without ``sandboxes`` that of list."""
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": network.created,
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": network.ipv4,
        "EnableIPv6": network.ipv6,
        "IPAM": {
            "Driver": network.ipam_driver,
            "Options": network.ipam_options,
            "Config": [msgspec.to_builtins(pool) for pool in network.pools] or None,
        },
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": network.ingress,
        "ConfigFrom": {"Network": network.config_from},
        "ConfigOnly": network.config_only,
        "Containers": dict(_members(network, sandboxes)),
        "Options": network.options,
        "Labels": network.labels,
    }


def _members(network: Network, sandboxes: Iterable[Sandbox]) -> Iterable[tuple[str, dict[str, str]]]:
    for sandbox in sandboxes:
        for endpoint in sandbox.endpoints:
            if endpoint.network_id == network.id:
                yield (
                    sandbox.request.container_id,
                    {
                        "Name": sandbox.request.name,
                        "EndpointID": endpoint.id,
                        "MacAddress": endpoint.mac,
                        "IPv4Address": _with_length(network, endpoint.address),
                        "IPv6Address": _with_length(network, endpoint.address6),
                    },
                )


def _with_length(network: Network, address: str) -> str:
    return str(network.interface(address)) if address else ""


def _length(network: Network, address: str) -> int:
    return network.interface(address).network.prefixlen if address else 0


def dns_names(request: SandboxRequest, config: Mapping[str, Any]) -> list[str]:
    """The names an endpoint answers to on a user-defined network."""
    names = [request.name, *(config.get("Aliases") or ()), request.container_id[:12], request.hostname]
    return list(dict.fromkeys(name for name in names if name))


def endpoint_settings(
    network: Network, request: SandboxRequest, config: Mapping[str, Any], endpoint: Endpoint | None
) -> dict[str, Any]:
    """``EndpointSettings``; empty addresses while the container is not connected."""
    four = endpoint.address if endpoint is not None else ""
    six = endpoint.address6 if endpoint is not None else ""
    return {
        "IPAMConfig": config.get("IPAMConfig"),
        "Links": config.get("Links"),
        "Aliases": config.get("Aliases"),
        "MacAddress": endpoint.mac if endpoint is not None else config.get("MacAddress") or "",
        "DriverOpts": config.get("DriverOpts"),
        "GwPriority": config.get("GwPriority") or 0,
        "NetworkID": network.id,
        "EndpointID": endpoint.id if endpoint is not None else "",
        "Gateway": "" if network.internal else network.gateway_of(four),
        "IPAddress": four,
        "IPPrefixLen": _length(network, four),
        "IPv6Gateway": "" if network.internal else network.gateway_of(six),
        "GlobalIPv6Address": six,
        "GlobalIPv6PrefixLen": _length(network, six),
        "DNSNames": dns_names(request, config) if network.names else None,
    }


def port_map(exposed: Iterable[str], sandbox: Sandbox | None) -> dict[str, list[dict[str, str]] | None]:
    """``NetworkSettings.Ports``: every exposed port, null where it is not published; empty while stopped."""
    if sandbox is None:
        return {}
    out: dict[str, list[dict[str, str]] | None] = {}
    for key in exposed:
        port, protocol = parse_port(key)
        out[f"{port}/{protocol}"] = None
    for published in (p for endpoint in sandbox.endpoints for p in endpoint.ports):
        bindings = out.get(f"{published.port}/{published.protocol}") or []
        bindings.append({"HostIp": published.host_ip, "HostPort": str(published.host_port or "")})
        out[f"{published.port}/{published.protocol}"] = bindings
    return out


def port_summary(exposed: Iterable[str], sandbox: Sandbox | None) -> list[dict[str, Any]]:
    """``Ports`` of container list."""
    out: list[dict[str, Any]] = []
    for key, bindings in port_map(exposed, sandbox).items():
        port, protocol = parse_port(key)
        for binding in bindings or ():
            if not binding["HostPort"]:
                out.append({"PrivatePort": port, "Type": protocol})
                continue
            host = {"IP": binding["HostIp"], "PrivatePort": port, "PublicPort": int(binding["HostPort"])}
            out.append({**host, "Type": protocol})
        if not bindings:
            out.append({"PrivatePort": port, "Type": protocol})
    return out


def network_settings(
    request: SandboxRequest,
    sandbox: Sandbox | None,
    key: str,
    networks: Iterable[tuple[Network, Mapping[str, Any]]],
) -> dict[str, Any]:
    """``NetworkSettings``; ``key`` is the path of the pinned namespace, ``networks`` what the container asks for."""
    by_network = {e.network_id: e for e in sandbox.endpoints} if sandbox is not None else {}
    views = {n.name: endpoint_settings(n, request, config, by_network.get(n.id)) for n, config in networks}
    default = views.get("bridge", {})
    return {
        "Bridge": "",
        "SandboxID": sandbox.id if sandbox is not None else "",
        "SandboxKey": key if sandbox is not None else "",
        "Ports": port_map(request.exposed_ports, sandbox),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": default.get("EndpointID", ""),
        "Gateway": default.get("Gateway", ""),
        "GlobalIPv6Address": default.get("GlobalIPv6Address", ""),
        "GlobalIPv6PrefixLen": default.get("GlobalIPv6PrefixLen", 0),
        "IPAddress": default.get("IPAddress", ""),
        "IPPrefixLen": default.get("IPPrefixLen", 0),
        "IPv6Gateway": default.get("IPv6Gateway", ""),
        "MacAddress": default.get("MacAddress", ""),
        "Networks": views,
    }
