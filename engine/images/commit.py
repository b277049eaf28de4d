"""``POST /commit``: a container's changes as one more layer on its image.

Rule: the container is paused while its files are read (unless asked not to), and goes on whatever happens here.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from engine.backend import translated
from engine.containers.freezing import freeze, thaw
from engine.containers.model import Container
from engine.images.assembly import Assembler, NewLayer, timestamp
from engine.images.catalog import Catalog
from engine.images.changes import apply_changes
from engine.images.containerd import UNCOMPRESSED, Containerd, Metadata, descriptor_of
from engine.images.records import Decoded
from engine.images.unpack import Extraction, Unpacker
from oci import digest as digests
from oci.errors import FailedPrecondition, NotFound
from oci.image import MEDIA_LAYER_GZIP, Descriptor, ExecutionConfig, History, ImageConfig, RootFS
from oci.reference import Reference
from protos.containerd import diff_pb2, snapshots_pb2
from protos.ttrpc import ONTO


class CommitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to commit; ``config`` is the configuration a client sent to lay over the container's (None: nothing)."""

    container: str
    reference: Reference | None = None
    author: str = ""
    comment: str = ""
    pause: bool = True
    changes: tuple[str, ...] = ()
    config: dict[str, Any] | None = None


class Committer:
    """Makes images from containers."""

    def __init__(self, containerd: Containerd, catalog: Catalog, assembler: Assembler, unpacker: Unpacker) -> None:
        self._containerd = containerd
        self._catalog = catalog
        self._assembler = assembler
        self._unpacker = unpacker

    async def commit(self, container: Container, request: CommitRequest) -> Decoded:
        """The new image. Raises ``InvalidArgument`` for a bad change before anything is stopped."""
        config = apply_changes(_config_of(container, request.config), request.changes)
        assert container.image_manifest is not None, "every container of this engine was made from an image"
        base = await self._catalog.decode(container.image_manifest)
        async with self._containerd.leased() as metadata:
            extracting, paused = self._unpacker.extracting, self._paused
            async with extracting(container.chain_id, metadata) as target, paused(container, request.pause):
                layer = await self.layer_of(container, metadata, target)
            moment = timestamp()
            step = History(
                created=moment,
                created_by=" ".join((container.path, *container.args)),
                author=request.author,
                comment=request.comment,
            )
            image = ImageConfig(
                architecture=base.config.architecture,
                os=base.config.os,
                variant=base.config.variant,
                created=moment,
                author=request.author,
                config=config,
                rootfs=RootFS((*base.config.rootfs.diff_ids, layer.diff_id)),
                history=(*base.config.history, step),
            )
            layers = (*base.layers, layer.blob)
            return await self._assembler.finish(image, layers, metadata, request.reference, parent=base.id)

    async def layer_of(self, container: Container, metadata: Metadata, target: Extraction | None = None) -> NewLayer:
        """What the container changed, as a layer in the store; the snapshot of it in ``target`` on the way.

        ``target`` becomes nothing where the supervisor cannot do both at once, and is to be made from the layer then.
        """
        blob = await self._diff(container, metadata if target is None else (*metadata, (ONTO, target.name)))
        diff_id = (await self._containerd.labels(blob.digest)).get(UNCOMPRESSED) or await self._diff_id(blob)
        if target is not None and blob.annotations.get(ONTO) == target.name:
            target.chain_id = digests.chained(container.chain_id, diff_id)
        return NewLayer(msgspec.structs.replace(blob, annotations={}), diff_id)

    @contextlib.asynccontextmanager
    async def _paused(self, container: Container, wanted: bool) -> AsyncIterator[None]:
        if not wanted or container.state.status != "running":
            yield
            return
        held = False
        # One that ended meanwhile changes its files no more.
        with contextlib.suppress(FailedPrecondition, NotFound):
            await freeze(self._containerd.backend, container.id)
            held = True
        try:
            yield
        finally:
            if held:
                with contextlib.suppress(FailedPrecondition, NotFound):
                    await thaw(self._containerd.backend, container.id)

    async def _diff(self, container: Container, metadata: Metadata) -> Descriptor:
        """The container's changes as a gzip layer."""
        snapshots = self._containerd.backend.snapshots
        snapshotter = container.snapshotter
        lower_key = f"commit-{secrets.token_hex(8)}"
        upper = snapshots_pb2.MountsRequest(snapshotter=snapshotter, key=container.id)
        lower = snapshots_pb2.ViewSnapshotRequest(snapshotter=snapshotter, key=lower_key, parent=container.chain_id)
        with translated():
            right = (await snapshots.Mounts(upper)).mounts
            left = (await snapshots.View(lower, metadata=metadata)).mounts
        try:
            diff = diff_pb2.DiffRequest(
                left=left, right=right, media_type=MEDIA_LAYER_GZIP, ref=f"commit-{secrets.token_hex(8)}"
            )
            with translated():
                return descriptor_of((await self._containerd.backend.diff.Diff(diff, metadata=metadata)).diff)
        finally:
            await self._containerd.drop_snapshot(lower_key)

    async def _diff_id(self, blob: Descriptor) -> str:
        from engine.images.layers import LayerStream

        stream = LayerStream(self._containerd.stream(blob.digest))
        async for _ in stream.pieces():
            pass
        return stream.diff_id


def _config_of(container: Container, sent: dict[str, Any] | None) -> ExecutionConfig:
    """The container's configuration as an image's, with what the client sent laid over it."""
    own = {k: v for k, v in msgspec.to_builtins(container.config).items() if v is not None}
    merged = {**own, **{k: v for k, v in (sent or {}).items() if v not in (None, "", [], {}, False)}}
    known = {field.encode_name for field in msgspec.structs.fields(ExecutionConfig)}
    config = msgspec.convert({k: v for k, v in merged.items() if k in known}, ExecutionConfig, strict=False)
    digests.parse(container.image_id)
    return config
