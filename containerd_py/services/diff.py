"""``containerd.services.diff.v1.Diff``: layer blobs to mounts, and mounts to layer blobs.

Rule: neither archive bytes nor mounts are touched here; a worker process does both, and this end moves descriptors.

An extension of ours: ``ttrpc.ONTO``, so that a commit need not read again what it has just written.
"""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence

from containerd_py.diff import media
from containerd_py.diff.pool import Changes, Created, LayerWorkers
from containerd_py.interfaces import ContentStore, ContentWriter, Mount, Scope, Snapshotter
from containerd_py.metadata.database import Database
from containerd_py.services.errors import Context, header, scope, served
from containerd_py.services.rpcs import DiffServicer
from containerd_py.services.snapshots import mounts_of
from oci.errors import AlreadyExists, InvalidArgument
from oci.image import MEDIA_LAYER, Descriptor
from protos.containerd import diff_pb2, types_pb2
from protos.ttrpc import ONTO

_PIECE = 1 << 20


@served(diff_pb2.DESCRIPTOR.services_by_name["Diff"])
class DiffService(DiffServicer):
    """Apply and Diff over one set of layer workers."""

    def __init__(
        self,
        content: ContentStore,
        workers: LayerWorkers,
        snapshotters: Mapping[str, Snapshotter],
        database: Database,
    ) -> None:
        self._content = content
        self._workers = workers
        self._snapshotters = snapshotters
        self._database = database

    async def Apply(self, request: diff_pb2.ApplyRequest, context: Context) -> diff_pb2.ApplyResponse:
        media.check_layer(request.diff.media_type)
        with self._content.open(scope(context), request.diff.digest) as blob:
            applied = await self._workers.apply(mounts_of(request.mounts), blob.fd, sync=request.sync_fs)
        descriptor = types_pb2.Descriptor(media_type=MEDIA_LAYER, digest=applied.digest, size=applied.size)
        return diff_pb2.ApplyResponse(applied=descriptor)

    async def Diff(self, request: diff_pb2.DiffRequest, context: Context) -> diff_pb2.DiffResponse:
        epoch = request.source_date_epoch.seconds if request.HasField("source_date_epoch") else None
        onto = header(context, ONTO)
        made = await write_layer(
            self._content,
            self._workers,
            scope(context),
            Changes(mounts_of(request.left), mounts_of(request.right), self._onto(scope(context), onto)),
            media_type=request.media_type,
            ref=request.ref,
            labels=dict(request.labels),
            epoch=epoch,
        )
        await self._database.flushed()
        descriptor = types_pb2.Descriptor(media_type=made.media_type, digest=made.digest, size=made.size)
        if onto:
            descriptor.annotations[ONTO] = onto
        return diff_pb2.DiffResponse(diff=descriptor)

    def _onto(self, caller: Scope, onto: str) -> Sequence[Mount]:
        if not onto:
            return ()
        name, _, key = onto.partition("/")
        if name not in self._snapshotters:
            raise InvalidArgument(f"{ONTO}: snapshotter not loaded: {name}")
        return self._snapshotters[name].mounts(caller, key)


async def write_layer(
    content: ContentStore,
    workers: LayerWorkers,
    caller: Scope,
    changes: Changes,
    *,
    media_type: str = "",
    ref: str = "",
    labels: dict[str, str] | None = None,
    epoch: int | None = None,
) -> Descriptor:
    """``changes`` as a layer blob with its ``containerd.io/uncompressed`` label.

    Raises ``Unimplemented`` (media type), ``Unavailable`` while another writer holds ``ref``.
    """
    kind, compression = media.compression(media_type)
    ref = ref or f"layer-{uuid.uuid4().hex}"
    writer = await asyncio.to_thread(content.writer, caller, ref)
    with writer:
        try:
            await asyncio.to_thread(writer.truncate, 0)
            diff = functools.partial(workers.diff, changes, compression=compression, epoch=epoch)
            made = await _fill(writer, diff)
            stamped = {**(labels or {}), media.UNCOMPRESSED: made.diff_id}
            await asyncio.to_thread(writer.commit, made.size, made.digest, stamped)
        except AlreadyExists:
            content.update(caller, made.digest, stamped, [f"labels.{key}" for key in stamped])
        except BaseException:
            writer.close()
            content.abort(caller, ref)
            raise
    return Descriptor(kind, made.digest, made.size)


async def _fill(writer: ContentWriter, diff: Callable[[int], Awaitable[Created]]) -> Created:
    """Have a worker write into a pipe whose other end goes into the content store."""
    source, target = os.pipe2(os.O_CLOEXEC)
    copying = asyncio.create_task(asyncio.to_thread(_drain, source, writer))
    try:
        made = await diff(target)
    finally:
        os.close(target)
        await copying
    return made


def _drain(source: int, writer: ContentWriter) -> None:
    with os.fdopen(source, "rb", buffering=0) as pipe:
        while data := pipe.read(_PIECE):
            writer.write(data)
