"""What images need of containerd, as a few plain calls: names, blobs, leases, snapshots.

Rule: whatever is created is created under a lease (``leased``) and refers to its parts by gc labels before the lease
ends, so that nothing is lost to a collection and nothing stays when its last name goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from engine.backend import Backend, ends_stream, translated
from engine.calls import LONGEST_READ
from engine.images.records import Record
from oci.errors import AlreadyExists, NotFound
from oci.hostpaths import SNAPSHOTTER
from oci.image import Descriptor
from protos.containerd import content_pb2, images_pb2, leases_pb2, snapshots_pb2, types_pb2

Metadata = tuple[tuple[str, str], ...]

PIECE = 1 << 20
"""Bytes of a blob in one message."""

LEASE_SECONDS = 24 * 3600
GC_EXPIRE = "containerd.io/gc.expire"
GC_CONTENT = "containerd.io/gc.ref.content"
GC_SNAPSHOT = "containerd.io/gc.ref.snapshot."
UNCOMPRESSED = "containerd.io/uncompressed"


def descriptor_message(descriptor: Descriptor) -> types_pb2.Descriptor:
    """``descriptor`` as containerd's message."""
    return types_pb2.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=descriptor.annotations,
    )


def descriptor_of(message: types_pb2.Descriptor) -> Descriptor:
    """A descriptor from containerd's message."""
    return Descriptor(message.media_type, message.digest, message.size, annotations=dict(message.annotations))


def record_of(image: images_pb2.Image) -> Record:
    """A name from containerd's message."""
    return Record(
        image.name,
        descriptor_of(image.target),
        dict(image.labels),
        image.created_at.ToNanoseconds(),
        image.updated_at.ToNanoseconds(),
    )


class Containerd:
    """Calls of one backend. ``snapshotter`` is the one images are unpacked with."""

    def __init__(self, backend: Backend, snapshotter: str = SNAPSHOTTER) -> None:
        self.backend = backend
        self.snapshotter = snapshotter

    # Names

    async def get(self, name: str) -> Record:
        """Raises ``NotFound``."""
        with translated():
            answer = await self.backend.images.Get(images_pb2.GetImageRequest(name=name))
        return record_of(answer.image)

    async def list(self) -> list[Record]:
        """Every name, in order."""
        with translated():
            answer = await self.backend.images.List(images_pb2.ListImagesRequest())
        return sorted((record_of(image) for image in answer.images), key=lambda record: record.name)

    async def put(self, name: str, target: Descriptor, labels: dict[str, str] | None = None) -> None:
        """Point ``name`` at ``target``, whether it existed or not."""
        image = images_pb2.Image(name=name, target=descriptor_message(target), labels=labels or {})
        with translated():
            try:
                with translated():
                    await self.backend.images.Create(images_pb2.CreateImageRequest(image=image))
            except AlreadyExists:
                await self.backend.images.Update(images_pb2.UpdateImageRequest(image=image))

    async def remove(self, name: str, *, sync: bool = False) -> None:
        """Remove a name; with ``sync`` what it kept is collected when this returns. Absence is success."""
        with contextlib.suppress(NotFound), translated():
            await self.backend.images.Delete(images_pb2.DeleteImageRequest(name=name, sync=sync))

    # Blobs

    async def read(self, digest: str) -> bytes:
        """The whole of a small blob. Raises ``NotFound``."""
        blob = b"".join([piece async for piece in self.stream(digest, size=PIECE)])
        if len(blob) == PIECE:
            blob += b"".join([piece async for piece in self.stream(digest, offset=PIECE)])
        return blob

    async def stream(self, digest: str, *, offset: int = 0, size: int = 0) -> AsyncIterator[bytes]:
        """A blob piece by piece, from ``offset``, to its end or ``size`` bytes. Raises ``NotFound``, ``OutOfRange``."""
        await self.backend.present(short=0 < size <= LONGEST_READ)
        request = content_pb2.ReadContentRequest(digest=digest, offset=offset, size=size)
        with translated():
            async for answer in self.backend.content.Read(request):
                yield answer.data

    async def labels(self, digest: str) -> dict[str, str]:
        """Labels of a blob. Raises ``NotFound``."""
        with translated():
            answer = await self.backend.content.Info(content_pb2.InfoRequest(digest=digest))
        return dict(answer.info.labels)

    async def has(self, digest: str) -> bool:
        """Whether the blob is here whole."""
        try:
            await self.labels(digest)
        except NotFound:
            return False
        return True

    async def label(self, digest: str, labels: dict[str, str]) -> None:
        """Set ``labels`` of a blob, leaving others alone."""
        request = content_pb2.UpdateRequest(info=content_pb2.Info(digest=digest, labels=labels))
        request.update_mask.paths.extend(f"labels.{key}" for key in labels)
        with translated():
            await self.backend.content.Update(request)

    async def blob_sizes(self) -> dict[str, int]:
        """Every blob and its size."""
        await self.backend.present()
        with translated():
            stream = self.backend.content.List(content_pb2.ListContentRequest())
            return {info.digest: info.size async for answer in stream for info in answer.info}

    async def write(self, data: bytes, metadata: Metadata, labels: dict[str, str] | None = None) -> str:
        """Store a small blob; its digest."""

        async def once() -> AsyncIterator[bytes]:
            yield data

        return (await self.write_stream(once(), metadata, labels))[0]

    async def write_stream(
        self, pieces: AsyncIterator[bytes], metadata: Metadata, labels: dict[str, str] | None = None
    ) -> tuple[str, int]:
        """Store a blob of unknown digest; its digest and size. The ingest is thrown away on failure."""
        ref = f"gantry-{secrets.token_hex(12)}"
        writer = _Writer(ref, labels or {})
        try:
            with translated():
                await self._ingest(writer, pieces, metadata)
        except AlreadyExists:
            await self.label(writer.digest, labels or {})
        except BaseException:
            with contextlib.suppress(Exception), translated():
                await self.backend.content.Abort(content_pb2.AbortRequest(ref=ref))
            raise
        return writer.digest, writer.size

    async def _ingest(self, writer: _Writer, pieces: AsyncIterator[bytes], metadata: Metadata) -> None:
        """Send the blob; every piece is answered before the next one goes.

        A write into a stream that the other side has just ended would hide why it did ("Internal error from Core").
        """
        # Without an iterator the call is written and read by hand; the stubs' types do not know that form.
        await self.backend.present()
        begin: Any = self.backend.content.Write
        call = begin(metadata=metadata)
        try:
            async for request in writer.requests(pieces):
                await call.write(request)
                await call.read()
            await call.done_writing()
            while not ends_stream(await call.read()):
                pass
        finally:
            call.cancel()

    # Leases and snapshots

    @contextlib.asynccontextmanager
    async def leased(self, *kept: Descriptor) -> AsyncIterator[Metadata]:
        """A lease for the time of the block; its value is the ``metadata=`` of calls that create things.

        It keeps ``kept`` from collections too, with what they refer to.
        """
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + LEASE_SECONDS))
        lease = f"gantry-{secrets.token_hex(12)}"
        # Nobody else makes a lease of that name: one that exists is ours, of a supervisor that died before it said so.
        with contextlib.suppress(AlreadyExists), translated():
            await self.backend.leases.Create(leases_pb2.CreateRequest(id=lease, labels={GC_EXPIRE: until}))
        try:
            await asyncio.gather(*(self._keep(lease, digest) for digest in {blob.digest for blob in kept}))
            yield self.backend.with_lease(lease)
        finally:
            with contextlib.suppress(NotFound), translated():
                await self.backend.leases.Delete(leases_pb2.DeleteRequest(id=lease))

    async def _keep(self, lease: str, digest: str) -> None:
        resource = leases_pb2.Resource(id=digest, type="content")
        with contextlib.suppress(AlreadyExists), translated():
            await self.backend.leases.AddResource(leases_pb2.AddResourceRequest(id=lease, resource=resource))

    async def snapshot_exists(self, key: str) -> bool:
        """Whether the snapshot is there."""
        request = snapshots_pb2.StatSnapshotRequest(snapshotter=self.snapshotter, key=key)
        try:
            with translated():
                await self.backend.snapshots.Stat(request)
        except NotFound:
            return False
        return True

    async def usage(self, key: str) -> int:
        """Bytes of one snapshot without its parents. Raises ``NotFound``."""
        with translated():
            answer = await self.backend.snapshots.Usage(
                snapshots_pb2.UsageRequest(snapshotter=self.snapshotter, key=key)
            )
        return int(answer.size)

    async def drop_snapshot(self, key: str) -> None:
        """Remove a snapshot; absence is success."""
        with contextlib.suppress(NotFound), translated():
            await self.backend.snapshots.Remove(
                snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key)
            )


class _Writer:
    """The requests of one ingest, hashed on their way out."""

    def __init__(self, ref: str, labels: dict[str, str]) -> None:
        self._ref = ref
        self._labels = labels
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()

    async def requests(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[content_pb2.WriteContentRequest]:
        """WRITE for every piece, then COMMIT."""
        async for piece in pieces:
            for part in _cut(piece):
                self._hash.update(part)
                yield content_pb2.WriteContentRequest(
                    action=content_pb2.WRITE, ref=self._ref, offset=self.size, data=part
                )
                self.size += len(part)
        yield content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT,
            ref=self._ref,
            offset=self.size,
            total=self.size,
            expected=self.digest,
            labels=self._labels,
        )


def _cut(piece: bytes) -> Iterable[bytes]:
    return (piece[at : at + PIECE] for at in range(0, len(piece), PIECE))
