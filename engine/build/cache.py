"""The build cache: what a step made, under a key that says all it was made from.

Rule: an entry is used only while its layer is here; layers and snapshots of entries are held by one lease of
containerd, so they live as long as their entry and not a moment longer.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable

import msgspec

from engine.backend import translated
from engine.images.assembly import NewLayer
from engine.images.containerd import Containerd
from engine.store import Store
from oci.errors import AlreadyExists, NotFound
from oci.image import Descriptor
from protos.containerd import leases_pb2

LEASE = "gantry-build-cache"
KIND = "buildcache"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One result. ``blob`` None means that the step changed no file. Times in nanoseconds since the epoch."""

    key: str
    description: str
    created: str
    blob: Descriptor | None = None
    diff_id: str = ""
    parent: str = ""
    made_at: int = 0
    used_at: int = 0
    uses: int = 0

    @property
    def layer(self) -> NewLayer | None:
        return NewLayer(self.blob, self.diff_id) if self.blob is not None else None


def key_of(*parts: str | Iterable[str]) -> str:
    """Hex SHA-256 over ``parts``; lists and texts cannot be mistaken for each other."""
    digest = hashlib.sha256()
    for part in parts:
        words = [part] if isinstance(part, str) else list(part)
        digest.update(b"%d;" % len(words) if not isinstance(part, str) else b"t;")
        for word in words:
            encoded = word.encode(errors="surrogateescape")
            digest.update(b"%d:" % len(encoded) + encoded)
    return digest.hexdigest()


class BuildCache:
    """Entries in ``engine.db``; what they refer to in containerd."""

    def __init__(self, store: Store, containerd: Containerd) -> None:
        self._store = store
        self._containerd = containerd
        self._entries = {key: msgspec.json.decode(body, type=Entry) for key, body in store.all(KIND)}
        self.metadata = containerd.backend.with_lease(LEASE)

    async def start(self) -> None:
        """Make the lease. Idempotent."""
        with contextlib.suppress(AlreadyExists), translated():
            await self._containerd.backend.leases.Create(leases_pb2.CreateRequest(id=LEASE))

    async def get(self, key: str) -> Entry | None:
        """The entry of ``key`` if what it refers to is still here; its use is noted."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.blob is not None and not await self._containerd.has(entry.blob.digest):
            self._forget(key)
            return None
        entry = msgspec.structs.replace(entry, used_at=time.time_ns(), uses=entry.uses + 1)
        self._put(entry)
        return entry

    def put(self, entry: Entry) -> None:
        """Remember a result."""
        now = time.time_ns()
        self._put(msgspec.structs.replace(entry, made_at=now, used_at=now))

    def _put(self, entry: Entry) -> None:
        self._store.put(KIND, entry.key, msgspec.json.encode(entry))
        self._entries[entry.key] = entry

    def _forget(self, key: str) -> None:
        self._store.delete(KIND, key)
        self._entries.pop(key, None)

    def entries(self) -> list[Entry]:
        """All entries, oldest use first."""
        return sorted(self._entries.values(), key=lambda entry: entry.used_at)

    async def prune(self, *, used_before: int | None = None, ids: tuple[str, ...] | None = None) -> list[Entry]:
        """Remove entries (all, those last used before, those named); those removed.

        Layers that an image or another entry needs stay; the rest goes with containerd's next collection.
        """
        gone = [
            entry
            for entry in self.entries()
            if (used_before is None or entry.used_at < used_before) and (ids is None or entry.key.startswith(ids))
        ]
        for entry in gone:
            self._forget(entry.key)
        kept = {entry.blob.digest for entry in self._entries.values() if entry.blob is not None}
        await self._release({e.blob.digest for e in gone if e.blob is not None} - kept, everything=not self._entries)
        return gone

    async def _release(self, digests: set[str], *, everything: bool) -> None:
        leases = self._containerd.backend.leases
        if everything:
            with contextlib.suppress(NotFound), translated():
                await leases.Delete(leases_pb2.DeleteRequest(id=LEASE, sync=True))
            await self.start()
            return
        for digest in digests:
            resource = leases_pb2.Resource(id=digest, type="content")
            with contextlib.suppress(NotFound), translated():
                await leases.DeleteResource(leases_pb2.DeleteResourceRequest(id=LEASE, resource=resource))
