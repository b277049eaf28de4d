"""The hosts and resolv.conf files of running containers, changed while they run.

Rule: a file is bound into its container by inode, so it is rewritten in place; only lines and contents that the engine
wrote are changed, what a user made of them stays.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence

import msgspec

from engine.network import names
from engine.network.model import Sandbox
from engine.network.names import Entries


def digest(text: str) -> str:
    """What tells a file that the engine wrote from one that was edited since."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def _edit(path: str, change: Callable[[str], str]) -> None:
    """Rewrite the file at ``path`` in place if it is there and ``change`` changes it."""
    with contextlib.suppress(FileNotFoundError), open(path, "r+", encoding="utf-8", errors="surrogateescape") as file:
        old = file.read()
        new = change(old)
        if new != old:
            file.seek(0)
            file.truncate()
            file.write(new)


def _lines(entries: Entries) -> list[str]:
    return [f"{address}\t{name}" for address, name in entries]


def _path(data_root: str, sandbox: Sandbox, name: str) -> str:
    return f"{data_root}/containers/{sandbox.request.container_id}/{name}"


def rewrite_resolv(data_root: str, sandbox: Sandbox, text: str) -> bool:
    """Give a container this resolv.conf where its file is still as the engine wrote it; whether that was so."""
    written = False

    def change(old: str) -> str:
        nonlocal written
        written = digest(old) == sandbox.resolv
        return text if written else old

    if data_root:
        _edit(_path(data_root, sandbox, "resolv.conf"), change)
    return written


def rewrite_hosts(data_root: str, container_id: str, before: Sandbox, now: Sandbox) -> None:
    """The lines of networks that came or went, in the file of a container that has the sandbox or shares it."""
    if not data_root:
        return
    had, has = (
        _lines([entry for endpoint in s.endpoints for entry in names.own_entries(s.request, endpoint)])
        for s in (before, now)
    )

    def hosts(text: str) -> str:
        kept = [line for line in text.splitlines() if line not in had or line in has]
        return "\n".join([*kept, *(line for line in has if line not in kept)]) + "\n"

    _edit(f"{data_root}/containers/{container_id}/hosts", hosts)


def update_links(data_root: str, linked: Sandbox, sandboxes: Sequence[Sandbox]) -> None:
    """A container of the default bridge has (another) address: tell those that link to it."""
    if not data_root:
        return
    for sandbox in sandboxes:
        for link in sandbox.request.links:
            name, alias = names.split_link(link)
            if names.find_sandbox(name, (linked,)) is not None:
                request = msgspec.structs.replace(sandbox.request, links=(link,))
                _edit(
                    _path(data_root, sandbox, "hosts"),
                    _replacing(alias, _lines(names.link_entries(request, (linked,)))),
                )


def _replacing(alias: str, lines: list[str]) -> Callable[[str], str]:
    def change(text: str) -> str:
        kept = [line for line in text.splitlines() if line.partition("\t")[2].split(" ")[0] != alias]
        return "\n".join([*kept, *lines]) + "\n"

    return change
