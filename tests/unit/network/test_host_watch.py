"""Changes of a file, however they are made, are noticed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from engine.network import files
from engine.network.hostwatch import FileWatcher

LIMIT = 20.0


def in_place(path: Path) -> None:
    path.write_text("in place")


def by_rename(path: Path) -> None:
    path.with_name("new").write_text("renamed")
    os.replace(path.with_name("new"), path)


def deleted_and_made(path: Path) -> None:
    path.unlink()
    path.write_text("made again")


def linked_to(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("linked", [False, True])
def test_every_way_of_writing_is_noticed(tmp_path: Path, linked: bool) -> None:
    """Each change is waited for before the next, so that none is noticed for another."""
    real = tmp_path / "run" / "resolv.conf"
    real.parent.mkdir()
    real.write_text("old")
    path = real
    if linked:
        path = tmp_path / "etc" / "resolv.conf"
        path.parent.mkdir()
        path.symlink_to(real)

    async def body(noticed: asyncio.Event, step: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        for change in (in_place, by_rename, in_place, deleted_and_made, in_place):
            await step(lambda change=change: change(real))  # type: ignore[misc]  # one change a turn
        if linked:
            other = tmp_path / "elsewhere"
            other.write_text("other")
            await step(lambda: linked_to(path, other))
            await step(lambda: in_place(other))

    async def watched() -> None:
        noticed = asyncio.Event()
        watcher = FileWatcher((str(path), str(tmp_path / "nowhere" / "x")), path.read_text, noticed.set)
        watcher.start()

        async def step(change: Callable[[], None]) -> None:
            noticed.clear()
            change()
            await asyncio.wait_for(noticed.wait(), LIMIT)

        await body(noticed, step)
        watcher.stop()
        watcher.stop()

    asyncio.run(watched())


def test_other_files_are_nobodys_business(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("same")
    told: list[int] = []
    looked = asyncio.Event()

    def look() -> str:
        looked.set()
        return (tmp_path / "resolv.conf").read_text()

    async def watched() -> None:
        watcher = FileWatcher((str(tmp_path / "resolv.conf"),), look, lambda: told.append(1))
        watcher.start()
        for name in ("passwd", "resolv.conf"):
            looked.clear()
            (tmp_path / name).write_text("same")
            await asyncio.wait_for(looked.wait(), LIMIT)
        watcher.stop()

    asyncio.run(watched())
    assert told == []


def test_the_stub_of_systemd_resolved_stands_for_its_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub, upstream = tmp_path / "stub", tmp_path / "upstream"
    monkeypatch.setattr(files, "RESOLV_CONF", str(stub))
    monkeypatch.setattr(files, "SYSTEMD_RESOLV_CONF", str(upstream))
    stub.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n")
    assert files.host_resolv_conf() == (stub.read_text(), str(stub)), "without systemd's other file"
    upstream.write_text("nameserver 192.0.2.1\nnameserver fe80::1%eth0\nsearch lan\n")
    assert files.host_resolv_conf() == (upstream.read_text(), str(upstream))
    text = files.resolv_conf(*files.host_resolv_conf()[:1], source=str(upstream))
    assert "nameserver 192.0.2.1\nsearch lan\n" in text, "an IPv4 container has no use for a link's address"
    stub.write_text("nameserver 127.0.0.53\nnameserver 192.0.2.2\n")
    assert files.host_resolv_conf() == (stub.read_text(), str(stub)), "somebody else's file, as in Docker"
