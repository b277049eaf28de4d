"""The build cache: what a step made, under a key that says all it was made from.

Rule: an entry is used only while its layer is here. Layers and snapshots of entries are held by one lease of
containerd: what no entry needs is let go of, but never while a build is under way, since a build relies on what it
found and on what it has just made.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable

import msgspec

from engine.backend import translated
from engine.images.assembly import NewLayer
from engine.images.containerd import Containerd
from engine.store import Store
from oci.errors import AlreadyExists, NotFound, ResourceExhausted
from oci.image import Descriptor
from protos.containerd import leases_pb2

LEASE = "gantry-build-cache"
KIND = "buildcache"
CHAINS = "buildchain"
MAX_SHORTCUTS = 1 << 16
SHOWN = 25
"""Characters of a key that make an id for people."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One result. ``blob`` None means that the step changed no file. Times in nanoseconds since the epoch."""

    key: str
    description: str
    created: str
    blob: Descriptor | None = None
    diff_id: str = ""
    made_at: int = 0
    used_at: int = 0
    uses: int = 0

    @property
    def layer(self) -> NewLayer | None:
        return NewLayer(self.blob, self.diff_id) if self.blob is not None else None

    @property
    def id(self) -> str:
        return self.key[:SHOWN]

    @property
    def size(self) -> int:
        return self.blob.size if self.blob is not None else 0


class _Snapshot(msgspec.Struct, frozen=True):
    """A snapshot that a build made: the layer ``diff_id`` on the chain ``parent``."""

    parent: str
    diff_id: str


class Prune(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries go: those last used before ``used_before`` (ns), of ``ids`` (beginnings), until ``keep`` bytes."""

    used_before: int | None = None
    ids: tuple[str, ...] | None = None
    keep: int = 0

    @property
    def everything(self) -> bool:
        return self.used_before is None and self.ids is None and not self.keep


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


class Shortcuts(OrderedDict[str | None, str]):
    """A mapping that forgets what was put in longest ago."""

    def __setitem__(self, name: str | None, key: str) -> None:
        super().__setitem__(name, key)
        if len(self) > MAX_SHORTCUTS:
            self.popitem(last=False)


class BuildCache:
    """Entries in ``engine.db``; what they refer to in containerd."""

    def __init__(self, store: Store, containerd: Containerd) -> None:
        self._store = store
        self._containerd = containerd
        self._entries = {key: msgspec.json.decode(body, type=Entry) for key, body in store.all(KIND)}
        self._chains = {key: msgspec.json.decode(body, type=_Snapshot) for key, body in store.all(CHAINS)}
        self._in_use: Counter[str] = Counter()
        self._builds = 0
        self._stale = False
        self._making: dict[str, tuple[asyncio.Lock, int]] = {}
        self.shortcuts = Shortcuts()
        """Keys by what is cheaper to know (see ``Filer.shortcut``); in memory alone, a new start finds them again."""
        self.metadata = containerd.backend.with_lease(LEASE)

    async def start(self) -> None:
        """Make the lease; let go of what a build of an earlier life left in it."""
        with contextlib.suppress(AlreadyExists), translated():
            await self._containerd.backend.leases.Create(leases_pb2.CreateRequest(id=LEASE))
        await self._let_go()

    @contextlib.asynccontextmanager
    async def session(self, layers: frozenset[str] | None = None) -> AsyncIterator[Session]:
        """One build's use of the cache: what it finds and makes stays until it is over.

        ``layers``: only steps that made one of these are found, and none that made no layer if there are none.
        """
        session = Session(self, layers)
        self._builds += 1
        try:
            yield session
        finally:
            self._builds -= 1
            self._in_use.subtract(session.keys)
            with contextlib.suppress(ResourceExhausted):
                self.note_uses(session.found)
            if self._stale and not self._builds:
                await asyncio.shield(self._let_go())

    @contextlib.asynccontextmanager
    async def making(self, key: str) -> AsyncIterator[None]:
        """One build at a time makes the entry of ``key``; the others wait, and find it."""
        lock, waiting = self._making.get(key, (asyncio.Lock(), 0))
        self._making[key] = lock, waiting + 1
        try:
            async with lock:
                yield
        finally:
            lock, waiting = self._making[key]
            self._making[key] = lock, waiting - 1
            if waiting == 1:
                del self._making[key]

    async def get(self, key: str) -> Entry | None:
        """The entry of ``key`` if what it refers to is still here; its use is noted."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.blob is not None and not await self._containerd.has(entry.blob.digest):
            self.forget(key)
            return None
        self.note_uses([key])
        return self._entries[key]

    def peek(self, key: str) -> Entry | None:
        """The entry of ``key``, whether its layer is here or not."""
        return self._entries.get(key)

    def note_uses(self, keys: Iterable[str]) -> None:
        """Builds have used the entries of ``keys``."""
        now = time.time_ns()
        found = [self._entries[key] for key in dict.fromkeys(keys) if key in self._entries]
        self._put(*(msgspec.structs.replace(entry, used_at=now, uses=entry.uses + 1) for entry in found))

    def put(self, entry: Entry) -> None:
        """Remember a result, whose layer is held by the lease."""
        now = time.time_ns()
        self._put(msgspec.structs.replace(entry, made_at=now, used_at=now))

    async def hold(self, digest: str) -> None:
        """Keep a blob that came from elsewhere, for an entry to come."""
        resource = leases_pb2.Resource(id=digest, type="content")
        with contextlib.suppress(AlreadyExists), translated():
            await self._containerd.backend.leases.AddResource(
                leases_pb2.AddResourceRequest(id=LEASE, resource=resource)
            )

    def use(self, key: str) -> None:
        """A build relies on the entry until its session ends."""
        self._in_use[key] += 1

    def note_snapshot(self, chain_id: str, parent: str, diff_id: str) -> None:
        """A build made the snapshot ``chain_id``."""
        if chain_id not in self._chains:
            snapshot = _Snapshot(parent, diff_id)
            self._store.put(CHAINS, chain_id, msgspec.json.encode(snapshot))
            self._chains[chain_id] = snapshot

    def note_failure(self) -> None:
        """A build ended in the middle: it may have left layers that no entry knows."""
        self._stale = True

    def _put(self, *entries: Entry) -> None:
        self._store.put_all(KIND, [(entry.key, msgspec.json.encode(entry)) for entry in entries])
        self._entries.update({entry.key: entry for entry in entries})

    async def blobs(self) -> set[str]:
        """Every blob that is here."""
        return set(await self._containerd.blob_sizes())

    async def has(self, digest: str) -> bool:
        """Whether one blob is here."""
        return await self._containerd.has(digest)

    def forget(self, key: str) -> None:
        """Drop an entry."""
        self._store.delete(KIND, key)
        self._entries.pop(key, None)

    def entries(self) -> list[Entry]:
        """All entries, oldest use first."""
        return sorted(self._entries.values(), key=lambda entry: entry.used_at)

    def in_use(self, entry: Entry) -> bool:
        """Whether a build that is under way relies on it."""
        return self._in_use[entry.key] > 0

    async def prune(self, wanted: Prune) -> list[Entry]:
        """Remove entries, oldest use first; those removed. What a build uses now stays.

        Layers that an image or another entry needs stay; the rest is gone when this returns, or when the last build
        under way is over.
        """
        left = sum(entry.size for entry in self._entries.values())
        gone = []
        for entry in self.entries():
            if self.in_use(entry) or left <= wanted.keep > 0:
                continue
            if wanted.used_before is not None and entry.used_at >= wanted.used_before:
                continue
            if wanted.ids is not None and not entry.key.startswith(wanted.ids):
                continue
            left -= entry.size
            gone.append(entry)
            self.forget(entry.key)
        self._stale = True
        self.shortcuts.clear()
        if not self._builds:
            await self._let_go()
        return gone

    async def _let_go(self) -> None:
        """Take out of the lease what no entry needs, and have it collected."""
        self._stale = False
        layers = {entry.diff_id for entry in self._entries.values()}
        for chain_id in [key for key in self._chains if not self._wanted(key, layers)]:
            self._store.delete(CHAINS, chain_id)
            del self._chains[chain_id]
        kept = {entry.blob.digest for entry in self._entries.values() if entry.blob is not None} | self._chains.keys()
        leases = self._containerd.backend.leases
        with translated():
            held = (await leases.ListResources(leases_pb2.ListResourcesRequest(id=LEASE))).resources
        for resource in held:
            if resource.id not in kept:
                with contextlib.suppress(NotFound), translated():
                    await leases.DeleteResource(leases_pb2.DeleteResourceRequest(id=LEASE, resource=resource))
        if held:
            await self._collect()

    def _wanted(self, chain_id: str, layers: set[str]) -> bool:
        """Whether every layer that builds put into the snapshot is one of an entry."""
        snapshot = self._chains.get(chain_id)
        while snapshot is not None:
            if snapshot.diff_id not in layers:
                return False
            snapshot = self._chains.get(snapshot.parent)
        return True

    async def _collect(self) -> None:
        """One collection, over when this returns: a lease that ends synchronously asks for it."""
        leases, name = self._containerd.backend.leases, f"{LEASE}-collect"
        with contextlib.suppress(AlreadyExists), translated():
            await leases.Create(leases_pb2.CreateRequest(id=name))
        with contextlib.suppress(NotFound), translated():
            await leases.Delete(leases_pb2.DeleteRequest(id=name, sync=True))


class Session:
    """The cache as one build sees it: one question to containerd at the first hit, one write at the end.

    What is found stays while the build goes on, so that what was here once need not be asked for again.
    """

    def __init__(self, cache: BuildCache, layers: frozenset[str] | None = None) -> None:
        self._cache = cache
        self._layers = layers
        self.shortcuts = cache.shortcuts
        self.making = cache.making
        self.keys: list[str] = []
        self.found: list[str] = []
        self._blobs: asyncio.Task[set[str]] | None = None

    async def get(self, key: str) -> Entry | None:
        """The entry of ``key`` if its layer is here; it stays while the build goes on."""
        entry = self._cache.peek(key)
        if entry is None or not self.allows(entry.diff_id):
            return None
        self._use(key)
        if entry.blob is not None and not await self._here(entry.blob.digest):
            self._cache.forget(key)
            return None
        self.found.append(key)
        return entry

    def allows(self, diff_id: str) -> bool:
        """Whether a step that made this layer ("": none) may be taken from the cache."""
        if self._layers is None:
            return True
        return diff_id in self._layers if diff_id else bool(self._layers)

    async def _here(self, digest: str) -> bool:
        if self._blobs is None:
            self._blobs = asyncio.create_task(self._cache.blobs())
        # What is not on the list may have come later.
        return digest in await asyncio.shield(self._blobs) or await self._cache.has(digest)

    def put(self, entry: Entry) -> None:
        """Remember a result."""
        self._cache.put(entry)
        self._use(entry.key)

    def _use(self, key: str) -> None:
        self.keys.append(key)
        self._cache.use(key)
