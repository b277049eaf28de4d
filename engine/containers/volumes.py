"""Volumes of the ``local`` driver: a directory each, under ``<data-root>/volumes/<name>/_data``.

Rule: a volume is in the store before its directory is made and leaves the store after its directory is gone, so that
a sweep at start can finish what a crash interrupted. A volume with driver options is mounted on its directory from the
first use to the last.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Callable

import msgspec

from engine.containers.volume_mounts import check_options, mount_volume, unmount_volume
from engine.store import Store
from oci.errors import FailedPrecondition, InvalidArgument, NotFound

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
ANONYMOUS_LABEL = "com.docker.volume.anonymous"


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """One volume; ``created_at`` in nanoseconds since the epoch."""

    name: str
    created_at: int
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None

    @property
    def anonymous(self) -> bool:
        return ANONYMOUS_LABEL in (self.labels or {})


class Volumes:
    """All volumes of this engine."""

    def __init__(self, store: Store, root: str) -> None:
        self._store = store
        self._root = root
        self._users: Callable[[str], list[str]] = lambda name: []
        self._publish: Callable[[str, str, dict[str, str]], object] = lambda action, name, attributes: None
        self._mounted: dict[str, set[str]] = {}
        self._volumes = {key: msgspec.json.decode(body, type=Volume) for key, body in store.all("volume")}

    def bind_users(self, users: Callable[[str], list[str]]) -> None:
        """``users(name)`` tells which containers (ids) use a volume."""
        self._users = users

    def path(self, name: str) -> str:
        """The volume's directory on the host."""
        return f"{self._root}/{name}/_data"

    def users(self, name: str) -> list[str]:
        """Ids of the containers that use volume ``name``."""
        return self._users(name)

    def all(self) -> list[Volume]:
        """Every volume, oldest first."""
        return sorted(self._volumes.values(), key=lambda v: v.created_at)

    def get(self, name: str) -> Volume:
        """Raises ``NotFound("get x: no such volume")``."""
        volume = self._volumes.get(name)
        if volume is None:
            raise NotFound(f"get {name}: no such volume")
        return volume

    def create(
        self,
        name: str = "",
        *,
        driver: str = "",
        labels: dict[str, str] | None = None,
        options: dict[str, str] | None = None,
    ) -> tuple[Volume, bool]:
        """The volume ``name`` (made up when empty) and whether it is new. Idempotent.

        Raises ``InvalidArgument`` for a bad name, ``NotFound`` for a driver other than ``local``.
        """
        if driver not in ("", "local"):
            raise NotFound(f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found')
        if not name:
            name = os.urandom(32).hex()
        elif not _NAME.fullmatch(name):
            raise InvalidArgument(
                f'create {name}: "{name}" includes invalid characters for a local volume name, '
                'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
                "If you intended to pass a host directory, use absolute path"
            )
        check_options(name, options)
        existing = self._volumes.get(name)
        if existing is not None:
            os.makedirs(self.path(name), mode=0o755, exist_ok=True)
            return existing, False
        volume = Volume(name=name, created_at=time.time_ns(), labels=labels, options=options)
        self._store.put("volume", name, msgspec.json.encode(volume))
        self._volumes[name] = volume
        os.makedirs(self.path(name), mode=0o755, exist_ok=True)
        self._tell(name, "create")
        return volume, True

    def bind_events(self, tell: Callable[[str, str, dict[str, str]], object]) -> None:
        """``tell(action, name, attributes)`` publishes volume events."""
        self._publish = tell

    def _tell(self, name: str, action: str, **attributes: str) -> None:
        self._publish(action, name, {"driver": "local", **attributes})

    async def use(self, name: str, container_id: str) -> None:
        """A container is about to use the volume: mount it if it has options. Idempotent."""
        volume = self._volumes.get(name)
        if volume is None or not volume.options:
            return
        self._mounted.setdefault(name, set()).add(container_id)
        await asyncio.to_thread(mount_volume, name, volume.options, self.path(name))

    async def release(self, name: str, container_id: str) -> None:
        """A container no longer uses the volume: unmount it after the last one. Idempotent."""
        users = self._mounted.get(name, set())
        users.discard(container_id)
        volume = self._volumes.get(name)
        if volume is not None and volume.options and not users:
            await asyncio.to_thread(unmount_volume, self.path(name))

    async def usage(self, name: str) -> tuple[int, int]:
        """(bytes on disk, number of containers) for ``system df``."""
        return await asyncio.to_thread(disk_usage, self.path(name)), len(self._users(name))

    async def remove(self, name: str) -> None:
        """Delete a volume and its data; raises ``NotFound``, ``FailedPrecondition`` while a container uses it."""
        self.get(name)
        users = self._users(name)
        if users:
            raise FailedPrecondition(f"remove {name}: volume is in use - [{', '.join(users)}]")
        # Never into a file system that is mounted there.
        await asyncio.to_thread(unmount_volume, self.path(name))
        await asyncio.to_thread(shutil.rmtree, f"{self._root}/{name}", ignore_errors=True)
        self._store.delete("volume", name)
        self._volumes.pop(name, None)
        self._tell(name, "destroy")


def disk_usage(path: str) -> int:
    """Bytes of all files below ``path``, hard links once, links not followed; files that go meanwhile count nothing."""
    total = 0
    seen: set[tuple[int, int]] = set()
    pending = [path]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif status.st_nlink == 1 or (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_size
    return total
