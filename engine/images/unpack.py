"""Layers to snapshots: whatever part of an image's chain is missing is applied, base first.

Rule: a committed snapshot named by its chain id is whole; until then the work has a name of its own under a lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence

from engine.backend import translated
from engine.images.containerd import GC_SNAPSHOT, Containerd, Metadata, descriptor_message
from engine.images.records import Decoded
from oci import digest as digests
from oci.errors import AlreadyExists, DataLoss
from oci.image import Descriptor
from protos.containerd import diff_pb2, snapshots_pb2, types_pb2

SNAPSHOT_REF = "containerd.io/snapshot.ref"


class Extraction:
    """A snapshot that layers are applied to. ``name``: ``SNAPSHOTTER/KEY``."""

    def __init__(self, name: str, mounts: Sequence[types_pb2.Mount]) -> None:
        self.name = name
        self.mounts = mounts
        self.chain_id = ""


class Unpacker:
    """Unpacks; two callers who want the same layer get it made once."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, image: Decoded) -> None:
        """Make the snapshot ``image.chain_id`` exist and be kept by the image's config."""
        if not image.chain_id or await self._containerd.snapshot_exists(image.chain_id):
            return
        lock = self._locks.setdefault(image.chain_id, asyncio.Lock())
        try:
            async with lock, self._containerd.leased() as metadata:
                parent = ""
                chain = digests.chain_ids(image.config.rootfs.diff_ids)
                for layer, diff_id, chain_id in zip(image.layers, image.config.rootfs.diff_ids, chain, strict=True):
                    if not await self._containerd.snapshot_exists(chain_id):
                        await self.apply(layer, diff_id, parent, chain_id, metadata)
                    parent = chain_id
                key = GC_SNAPSHOT + self._containerd.snapshotter
                await self._containerd.label(image.id, {key: image.chain_id})
        finally:
            if not lock.locked():
                self._locks.pop(image.chain_id, None)

    async def apply(self, layer: Descriptor, diff_id: str, parent: str, chain_id: str, metadata: Metadata) -> None:
        """One layer on ``parent``, committed as ``chain_id``. Raises ``DataLoss`` when it is not what was promised."""
        async with self.extracting(parent, metadata, chain_id) as target:
            apply = diff_pb2.ApplyRequest(diff=descriptor_message(layer), mounts=target.mounts)
            with translated():
                applied = await self._containerd.backend.diff.Apply(apply, metadata=metadata)
            if applied.applied.digest != diff_id:
                raise DataLoss(f"layer {layer.digest} unpacks to {applied.applied.digest}, its image says {diff_id}")
            target.chain_id = chain_id

    @contextlib.asynccontextmanager
    async def extracting(self, parent: str, metadata: Metadata, chain_id: str = "") -> AsyncIterator[Extraction]:
        """An active snapshot on ``parent``, committed at the end as the ``chain_id`` it has then; without one it goes.

        ``chain_id``: what it will be, where that is known.
        """
        snapshots, name = self._containerd.backend.snapshots, self._containerd.snapshotter
        key = f"extract-{secrets.token_hex(8)} {chain_id}".rstrip()
        labels = {SNAPSHOT_REF: chain_id} if chain_id else {}
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter=name, key=key, parent=parent, labels=labels)
        target = Extraction(f"{name}/{key}", await self._containerd.backend.prepare(prepare, metadata))
        try:
            yield target
            if target.chain_id:
                commit = snapshots_pb2.CommitSnapshotRequest(
                    snapshotter=name, name=target.chain_id, key=key, labels={SNAPSHOT_REF: target.chain_id}
                )
                with contextlib.suppress(AlreadyExists), translated():
                    await snapshots.Commit(commit, metadata=metadata)
                    return
        except BaseException:
            await asyncio.shield(self._containerd.drop_snapshot(key))
            raise
        await self._containerd.drop_snapshot(key)
