"""The hosts and resolv.conf files of running containers, changed while they run.

Rule: a file is bound into its container by inode, so it is rewritten in place; only lines and contents that the engine
wrote are changed, what a user made of them stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import msgspec

from engine.network import names
from engine.network.model import Sandbox
from engine.network.names import Entries


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


def rewrite(data_root: str, before: Sandbox, now: Sandbox, old_resolv: str, new_resolv: str) -> None:
    """The lines of networks that came or went, and the resolv.conf where it is still the engine's."""
    if not data_root:
        return
    had, has = (
        _lines([entry for endpoint in s.endpoints for entry in names.own_entries(s.request, endpoint)])
        for s in (before, now)
    )

    def hosts(text: str) -> str:
        kept = [line for line in text.splitlines() if line not in had or line in has]
        return "\n".join([*kept, *(line for line in has if line not in kept)]) + "\n"

    _edit(_path(data_root, now, "hosts"), hosts)
    _edit(_path(data_root, now, "resolv.conf"), lambda text: new_resolv if text == old_resolv else text)


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
