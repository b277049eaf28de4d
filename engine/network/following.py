"""The files of running containers follow their networks and the host.

Rule: a resolv.conf follows as long as it is what the engine wrote; one that was edited is the user's until the next
start.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from engine.network import files, hostfiles, names
from engine.network.model import Sandbox
from oci.errors import GantryError

if TYPE_CHECKING:
    from engine.network.service import NetworkService


def with_resolv(service: NetworkService, sandbox: Sandbox) -> tuple[Sandbox, str]:
    """(a sandbox that knows the resolv.conf it is about to get, that file's text)"""
    text = _resolv(service, sandbox) or ""
    return msgspec.structs.replace(sandbox, resolv=hostfiles.digest(text)), text


def rewrite(service: NetworkService, before: Sandbox, now: Sandbox) -> None:
    """A running container was connected or disconnected: its hosts and resolv.conf follow, and its sharers'."""
    for sandbox in service.sandboxes():
        owner = _owner(service, sandbox)
        if owner is not None and owner.id == now.id:
            hostfiles.rewrite_hosts(service.options.data_root, sandbox.request.container_id, before, now)
            _follow(service, sandbox)


def host_says() -> object:
    """All of the host's that a resolv.conf is made from."""
    return files.host_file(files.RESOLV_CONF), files.host_resolv_conf()


def follow_host(service: NetworkService) -> None:
    """The host may have other DNS servers now: every running container's resolv.conf follows."""
    for sandbox in service.sandboxes():
        _follow(service, sandbox)


def _owner(service: NetworkService, sandbox: Sandbox) -> Sandbox | None:
    """The sandbox whose namespace it is; None when that has ended."""
    found: Sandbox | None = sandbox
    while found is not None and found.shared_with:
        found = service.sandbox(found.shared_with)
    return found


def _resolv(service: NetworkService, sandbox: Sandbox) -> str | None:
    owner = _owner(service, sandbox)
    return None if owner is None else names.resolv_conf(owner, service.registry.find, service.options)


def _follow(service: NetworkService, sandbox: Sandbox) -> None:
    with contextlib.suppress(GantryError):  # a network of it is just being removed
        text = _resolv(service, sandbox)
        if text is None or hostfiles.digest(text) == sandbox.resolv:
            return
        if hostfiles.rewrite_resolv(service.options.data_root, sandbox, text):
            service.keep(msgspec.structs.replace(sandbox, resolv=hostfiles.digest(text)))
