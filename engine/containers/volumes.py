"""Volumes of the ``local`` driver: a directory each, under ``<data-root>/volumes/<name>/_data``.

Rule: a volume is in the store before its directory is made and leaves the store after its directory is gone, so that
a sweep at start can finish what a crash interrupted.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable

import msgspec

from engine.store import Store
from oci.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented

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
            raise NotFound(f"error looking up volume plugin {driver}: plugin {driver!r} not found")
        if options:
            raise Unimplemented(
                f"options of the local volume driver are not built yet: {', '.join(sorted(options))}",
                hint="mount the file system on the host and use a bind mount",
            )
        if not name:
            name = secrets.token_hex(32)
        elif not _NAME.fullmatch(name):
            raise InvalidArgument(
                f'create {name}: "{name}" includes invalid characters for a local volume name, '
                'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
                "If you intended to pass a host directory, use absolute path"
            )
        existing = self._volumes.get(name)
        if existing is not None:
            os.makedirs(self.path(name), mode=0o755, exist_ok=True)
            return existing, False
        volume = Volume(name=name, created_at=time.time_ns(), labels=labels, options=options)
        self._store.put("volume", name, msgspec.json.encode(volume))
        self._volumes[name] = volume
        os.makedirs(self.path(name), mode=0o755, exist_ok=True)
        return volume, True

    async def remove(self, name: str) -> None:
        """Delete a volume and its data; raises ``NotFound``, ``FailedPrecondition`` while a container uses it."""
        self.get(name)
        users = self._users(name)
        if users:
            raise FailedPrecondition(f"remove {name}: volume is in use - [{', '.join(users)}]")
        await asyncio.to_thread(shutil.rmtree, f"{self._root}/{name}", ignore_errors=True)
        self._store.delete("volume", name)
        self._volumes.pop(name, None)
