"""Where steps are carried out: files are copied into layers, commands run in containers, both end as a snapshot.

Rule: a step works on the chain it is given and returns the next one; whatever else it made (containers, views, mounts)
is gone when it returns, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple

from engine.backend import translated
from engine.build import layers
from engine.build.cache import BuildCache
from engine.build.copying import Member
from engine.build.stagetree import StageTree
from engine.containers.model import RootfsMount
from engine.images.assembly import Assembler, NewLayer
from engine.images.containerd import Containerd
from engine.images.unpack import Unpacker
from engine.spec.rootfs import layers_of
from oci import digest as digests
from protos.containerd import snapshots_pb2


class Chain(NamedTuple):
    """A file system made of layers, base first; ``id`` is its chain ID ("" for nothing at all)."""

    layers: tuple[NewLayer, ...] = ()
    id: str = ""

    @classmethod
    def of(cls, layers: tuple[NewLayer, ...]) -> Chain:
        """The chain of ``layers``."""
        return cls(layers, digests.chain_id(layer.diff_id for layer in layers))

    @property
    def diff_ids(self) -> tuple[str, ...]:
        return tuple(layer.diff_id for layer in self.layers)

    @property
    def parent(self) -> Chain:
        """This chain without its topmost layer."""
        return Chain.of(self.layers[:-1])

    def plus(self, layer: NewLayer) -> Chain:
        """This chain with one more layer."""
        return Chain((*self.layers, layer), digests.chained(self.id, layer.diff_id))


class Workshop:
    """Layers and snapshots of builds; everything it makes is held by the cache's lease."""

    def __init__(self, containerd: Containerd, assembler: Assembler, unpacker: Unpacker, cache: BuildCache) -> None:
        self._containerd = containerd
        self._assembler = assembler
        self._unpacker = unpacker
        self._cache = cache
        self._locks: dict[str, asyncio.Lock] = {}

    async def layer(self, members: Sequence[Member], epoch: int | None) -> NewLayer:
        """``members`` as a layer in the store."""
        pieces = layers.archive(members, now=int(time.time()) if epoch is None else epoch, epoch=epoch)
        return await self._assembler.store_layer(_in_thread(pieces), self._cache.metadata)

    async def ensure(self, chain: Chain) -> None:
        """Make the snapshot of ``chain``, and what it stands on, where they are missing.

        Whoever is about to use the files of a chain asks for it: a build whose steps are all known needs none.
        """
        if not chain.layers:
            return
        lock = self._locks.setdefault(chain.id, asyncio.Lock())
        async with lock:
            if not await self._containerd.snapshot_exists(chain.id):
                below, layer = chain.parent, chain.layers[-1]
                await self.ensure(below)
                await self._unpacker.apply(layer.blob, layer.diff_id, below.id, chain.id, self._cache.metadata)
                self._cache.note_snapshot(chain.id, below.id, layer.diff_id)
        if not lock.locked():
            self._locks.pop(chain.id, None)

    @contextlib.asynccontextmanager
    async def tree(self, chain: Chain) -> AsyncIterator[StageTree]:
        """The files of ``chain`` for reading."""
        if not chain.layers:
            yield StageTree([])
            return
        async with self.view(chain) as mounts:
            tree = StageTree(layers_of(mounts))
            try:
                yield tree
            finally:
                tree.close()

    @contextlib.asynccontextmanager
    async def view(self, chain: Chain, *, writable: bool = False) -> AsyncIterator[tuple[RootfsMount, ...]]:
        """Mounts of ``chain``; a writable one is thrown away at the end."""
        key = f"build-{secrets.token_hex(12)}"
        snapshots, name = self._containerd.backend.snapshots, self._containerd.snapshotter
        metadata = self._cache.metadata
        await self.ensure(chain)
        if writable or not chain.layers:
            prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter=name, key=key, parent=chain.id)
            mounts = await self._containerd.backend.prepare(prepare, metadata)
        else:
            request = snapshots_pb2.ViewSnapshotRequest(snapshotter=name, key=key, parent=chain.id)
            with translated():
                mounts = (await snapshots.View(request, metadata=metadata)).mounts
        try:
            yield tuple(RootfsMount(m.type, m.source, tuple(m.options)) for m in mounts)
        finally:
            await asyncio.shield(self._containerd.drop_snapshot(key))


async def _in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """A blocking iterator, each step of it in a thread."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        if piece:
            yield piece
