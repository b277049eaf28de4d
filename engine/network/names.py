"""Names of containers: their hosts and resolv.conf files, legacy links, and what the DNS server is told of them.

Rule: pure functions of sandboxes and networks; the host's resolv.conf is the only thing read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from engine.interfaces import SandboxRequest
from engine.network import files
from engine.network.model import Endpoint, Network, NetworkOptions, Sandbox
from engine.network.ports import RELAYED
from engine.network.views import dns_names

Entries = list[tuple[str, str]]
"""Lines of a hosts file: (address, names)."""

FindNetwork = Callable[[str], Network]


def uses_dns(sandbox: Sandbox, find: FindNetwork) -> bool:
    """Whether a container asks the engine's DNS server: it does as soon as it is on one user-defined network."""
    return any(find(e.network_id).names for e in sandbox.endpoints if e.addresses)


def own_entries(request: SandboxRequest, endpoint: Endpoint) -> Entries:
    """The lines about a container's own addresses on one network."""
    name = files.own_names(request.hostname, request.domainname)
    return [(address, name) for address in endpoint.addresses] if name else []


def split_link(link: str) -> tuple[str, str]:
    """``name:alias``, ``name`` or Docker's stored ``/name:/other/alias`` as (name, alias)."""
    name, _, alias = link.partition(":")
    name = name.lstrip("/")
    return name, alias.rpartition("/")[2] or name


def find_sandbox(reference: str, sandboxes: Iterable[Sandbox]) -> Sandbox | None:
    """The sandbox of the container with this name or id."""
    for sandbox in sandboxes:
        request = sandbox.request
        if reference == request.name or (len(reference) >= 12 and request.container_id.startswith(reference)):
            return sandbox
    return None


def link_entries(request: SandboxRequest, sandboxes: Sequence[Sandbox]) -> Entries:
    """The lines about containers linked on the default bridge."""
    out: Entries = []
    for link in request.links:
        name, alias = split_link(link)
        other = find_sandbox(name, sandboxes)
        endpoint = next((e for e in other.endpoints if e.network == "bridge"), None) if other is not None else None
        if other is None or endpoint is None:
            continue
        names = [alias, other.request.hostname, *([other.request.name] if alias != other.request.name else [])]
        out += [(address, " ".join(dict.fromkeys(names))) for address in endpoint.addresses]
    return out


def hosts_file(sandbox: Sandbox, others: Sequence[Sandbox], gateways: Sequence[str]) -> str:
    """The hosts file of ``sandbox``; ``gateways`` are what ``host-gateway`` stands for."""
    request = sandbox.request
    extra = files.extra_entries(request.extra_hosts, gateways)
    if request.mode == "host":
        text = files.host_file("/etc/hosts")
        text += "" if text.endswith("\n") or not text else "\n"
        return text + "".join(f"{address}\t{name}\n" for address, name in extra)
    own = [entry for endpoint in sandbox.endpoints for entry in own_entries(request, endpoint)]
    return files.hosts([*extra, *link_entries(request, others), *own])


def resolv_conf(sandbox: Sandbox, find: FindNetwork, options: NetworkOptions) -> str:
    """The resolv.conf of a container as it is connected now."""
    request = sandbox.request
    if request.mode == "host":
        kind, source, text = "host", files.RESOLV_CONF, files.host_file(files.RESOLV_CONF)
    else:
        text, source = files.host_resolv_conf()
        kind = "internal" if uses_dns(sandbox, find) else "legacy"
    return files.resolv_conf(
        text,
        servers=request.dns or options.dns,
        search=request.dns_search or options.dns_search,
        options=request.dns_options or options.dns_options,
        kind=kind,
        ipv6=any(endpoint.address6 for endpoint in sandbox.endpoints),
        source=source,
    )


def dns_record(sandbox: Sandbox, find: FindNetwork, pin: str, options: NetworkOptions) -> dict[str, Any] | None:
    """What the DNS server needs to know of a container (``engine.network.dns``); None for one that it does not serve.

    Containers whose networks are all internal are not served from outside, so that no question leaks out (moby's
    CVE-2024-29018).
    """
    asks, relayed = uses_dns(sandbox, find), relays(sandbox)
    if not asks and not relayed:
        return None
    request = sandbox.request
    networks, outside, links = [], False, {}
    for endpoint in sandbox.endpoints:
        network = find(endpoint.network_id)
        if not endpoint.addresses:
            continue
        outside = outside or not network.internal
        links.update(_links(endpoint.config))
        names = dns_names(request, endpoint.config) if network.names else []
        networks.append({"id": network.id, "name": network.name, "addresses": endpoint.addresses, "names": names})
    links.update({alias: name for name, alias in map(split_link, request.links)})
    return {
        "id": request.container_id,
        "pin": pin,
        "networks": networks,
        "links": links,
        "forward": outside,
        "servers": list(request.dns),
        "host_servers": list(options.dns),
        "asks": asks,
        "relays": relayed,
    }


def relays(sandbox: Sandbox) -> list[tuple[int, str, int, str, str]]:
    """(host port, address, port, where it listens, protocol) of what is passed on by IPv6 to containers without it.

    That is every TCP and UDP port published on all addresses; one that was asked for on 0.0.0.0 alone is at least
    ``localhost``, whichever address of it a client tries first.
    """
    out = []
    for endpoint in sandbox.endpoints:
        everywhere = {(port.protocol, port.host_port) for port in endpoint.ports if port.relayed}
        for port in endpoint.ports:
            wanted = port.host_ip == "0.0.0.0" and port.host_port and port.protocol in RELAYED
            if wanted and not endpoint.address6:
                listens = "::" if (port.protocol, port.host_port) in everywhere else "::1"
                out.append((port.host_port, endpoint.address, port.port, listens, port.protocol))
    return out


def _links(config: Mapping[str, Any]) -> dict[str, str]:
    return {alias: name for name, alias in map(split_link, config.get("Links") or ())}


def link_environment(
    request: SandboxRequest, sandboxes: Sequence[Sandbox], environments: Callable[[str], Sequence[str]]
) -> tuple[str, ...]:
    """The variables that ``--link`` gives a container on the default bridge (Docker's legacy links).

    ``environments(container id)`` is the environment of a linked container.
    """
    out: list[str] = []
    for link in request.links:
        name, alias = split_link(link)
        other = find_sandbox(name, sandboxes)
        endpoint = next((e for e in other.endpoints if e.network == "bridge"), None) if other is not None else None
        if other is not None and endpoint is not None:
            variable = alias.replace("-", "_").upper()
            out.append(f"{variable}_NAME=/{request.name}/{alias}")
            out += _port_variables(variable, endpoint.address, other.request.exposed_ports)
            for item in environments(other.request.container_id):
                key, equals, value = item.partition("=")
                if equals and key not in ("HOME", "PATH"):
                    out.append(f"{variable}_ENV_{key}={value}")
    return tuple(out)


def _port_variables(variable: str, address: str, exposed: Sequence[str]) -> list[str]:
    ports = sorted({_split_port(key) for key in exposed}, key=lambda p: (p[0], p[1] != "tcp", p[1]))
    out = [f"{variable}_PORT={p}://{address}:{n}" for n, p in ports[:1]]
    for number, protocol in ports:
        prefix = f"{variable}_PORT_{number}_{protocol.upper()}"
        out.append(f"{prefix}={protocol}://{address}:{number}")
        out += [f"{prefix}_ADDR={address}", f"{prefix}_PORT={number}", f"{prefix}_PROTO={protocol}"]
    return out


def _split_port(key: str) -> tuple[int, str]:
    number, _, protocol = key.partition("/")
    return int(number), protocol or "tcp"
