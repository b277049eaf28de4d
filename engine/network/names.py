"""The name files of one sandbox: which entries go into its hosts file, which servers into its resolv.conf.

Rule: until the engine has its own DNS server, containers of a user-defined network find those that were started
before them through their hosts file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.interfaces import SandboxFiles
from engine.network import files
from engine.network.model import Sandbox
from engine.network.views import dns_names


def container_files(
    sandbox: Sandbox, others: Iterable[Sandbox], host_gateway: str, daemon_dns: Sequence[str]
) -> SandboxFiles:
    """The files of ``sandbox``; ``others`` are all sandboxes, ``host_gateway`` what that word stands for."""
    request = sandbox.request
    extra = files.extra_entries(request.extra_hosts, host_gateway)
    shares_host = request.mode == "host"
    resolv = files.resolv_conf(
        files.host_file(files.RESOLV_CONF) if shares_host else files.host_resolv_conf(),
        servers=request.dns or daemon_dns,
        search=request.dns_search,
        options=request.dns_options,
        own_loopback=shares_host,
    )
    if shares_host:
        text = files.host_file("/etc/hosts")
        text += "" if text.endswith("\n") or not text else "\n"
        return SandboxFiles(text + "".join(f"{address}\t{name}\n" for address, name in extra), resolv)
    own = [(e.address, request.hostname) for e in sandbox.endpoints if e.address and request.hostname]
    return SandboxFiles(files.hosts([*extra, *own, *_peers(sandbox, others)]), resolv)


def _peers(sandbox: Sandbox, others: Iterable[Sandbox]) -> list[tuple[str, str]]:
    mine = {e.network_id for e in sandbox.endpoints if e.address and e.network != "bridge"}
    return [
        (endpoint.address, " ".join(dns_names(other.request, endpoint.config)))
        for other in others
        if other.id != sandbox.id
        for endpoint in other.endpoints
        if endpoint.network_id in mine
    ]
