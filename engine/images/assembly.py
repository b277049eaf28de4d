"""New images: layers, a config and a manifest written, unpacked and named, all under one lease.

Rule: bytes of a config or manifest depend only on what the image is (no clock of ours), so equal inputs have equal ids.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import msgspec

from engine.images.catalog import Catalog
from engine.images.containerd import GC_CONTENT, GC_SNAPSHOT, UNCOMPRESSED, Containerd, Metadata
from engine.images.layers import LayerStream
from engine.images.names import Names
from engine.images.records import PARENT_LABEL, Decoded, dangling_name
from engine.images.unpack import Unpacker
from oci import digest as digests
from oci.image import MEDIA_CONFIG, MEDIA_LAYER_GZIP, MEDIA_MANIFEST, Descriptor, ImageConfig, Manifest
from oci.reference import Reference


def timestamp(nanoseconds: int | None = None) -> str:
    """RFC 3339 with nanoseconds, trailing zeros dropped as Go does; now without an argument."""
    moment = time.time_ns() if nanoseconds is None else nanoseconds
    fraction = f".{moment % 10**9:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment // 10**9)) + fraction + "Z"


class NewLayer(msgspec.Struct, frozen=True):
    """A layer in the store: its blob, and the digest of its plain tar."""

    blob: Descriptor
    diff_id: str


class Assembler:
    """Makes images from layers."""

    def __init__(self, containerd: Containerd, catalog: Catalog, unpacker: Unpacker, names: Names) -> None:
        self._containerd = containerd
        self._catalog = catalog
        self._unpacker = unpacker
        self._names = names

    async def store_layer(self, source: AsyncIterator[bytes], metadata: Metadata) -> NewLayer:
        """A tar of any compression as a layer blob."""
        stream = LayerStream(source)
        digest, size = await self._containerd.write_stream(stream.pieces(), metadata)
        await self._containerd.label(digest, {UNCOMPRESSED: stream.diff_id})
        return NewLayer(Descriptor(MEDIA_LAYER_GZIP, digest, size), stream.diff_id)

    async def finish(
        self,
        config: ImageConfig,
        layers: tuple[Descriptor, ...],
        metadata: Metadata,
        reference: Reference | None,
        parent: str = "",
    ) -> Decoded:
        """Write config and manifest, unpack, name (dangling without ``reference``); the image."""
        raw = msgspec.json.encode(config)
        chain = digests.chain_id(config.rootfs.diff_ids)
        labels = {GC_SNAPSHOT + self._containerd.snapshotter: chain} if chain else {}
        if parent:
            labels[PARENT_LABEL] = parent
        # The label that keeps the snapshot is set when the snapshot is there: until then the lease keeps it.
        config_digest = await self._containerd.write(raw, metadata, {k: v for k, v in labels.items() if v != chain})
        blob = Descriptor(MEDIA_CONFIG, config_digest, len(raw))
        document = msgspec.json.encode(Manifest(config=blob, layers=layers, media_type=MEDIA_MANIFEST))
        kept = {f"{GC_CONTENT}.config": config_digest}
        kept |= {f"{GC_CONTENT}.l.{n}": layer.digest for n, layer in enumerate(layers)}
        digest = await self._containerd.write(document, metadata, kept)
        target = Descriptor(MEDIA_MANIFEST, digest, len(document))
        decoded = await self._catalog.decode(target)
        await self._unpacker.ensure(decoded)
        if labels:
            await self._containerd.label(config_digest, labels)
        if reference is not None:
            await self._names.assign(reference, target)
        elif not await self._names.any_of(decoded.id):
            await self._containerd.put(dangling_name(digest), target)
        return decoded
