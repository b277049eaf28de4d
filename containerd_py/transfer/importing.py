"""Import: an archive's blobs into the content store, its images into the image store.

Rule: everything is stored under a lease of its own that is dropped when the import fails, so a bad archive leaves
nothing. What the archive says about digests is checked while it streams.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import uuid
from collections.abc import AsyncIterator

from containerd_py.archives.layout import FoundImage, docker_names, images
from containerd_py.archives.reader import Contents, Source, Stored, read_archive
from containerd_py.interfaces import ContentStore, ContentWriter, Scope
from containerd_py.transfer import graph, platforms
from containerd_py.transfer.fetch import hold, put
from containerd_py.transfer.model import Destination, Event, Report, Stores
from containerd_py.transfer.names import of_archive, save
from containerd_py.transfer.unpacking import unpack_image
from oci.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from oci.image import MEDIA_LAYER, Descriptor, ImageConfig, Index, Manifest

PIECE = 1 << 20
HEAD = 8


class BlockingReader:
    """An asynchronous stream of pieces as a file for a thread; ``read`` gives at least one byte until the end."""

    def __init__(self, pieces: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._pieces = pieces
        self._loop = loop
        self._rest = b""
        self._ended = False
        self._closed = False
        self._waiting: concurrent.futures.Future[bytes | None] | None = None

    def read(self, size: int = -1, /) -> bytes:
        while not self._rest and not self._ended:
            self._rest = self._next()
        data, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        return data

    def _next(self) -> bytes:
        if self._closed:
            raise OSError("the client went away")
        self._waiting = asyncio.run_coroutine_threadsafe(self._one(), self._loop)
        try:
            piece = self._waiting.result()
        except concurrent.futures.CancelledError:
            raise OSError("the client went away") from None
        self._ended = piece is None
        return piece or b""

    async def _one(self) -> bytes | None:
        return await anext(self._pieces, None)

    def stop(self) -> None:
        """Have the thread's next ``read`` fail."""
        self._closed = True
        if self._waiting is not None:
            self._waiting.cancel()


class Import:
    """One import on its way. ``scope`` has a lease of the import's own."""

    def __init__(self, stores: Stores, scope: Scope, destination: Destination, report: Report) -> None:
        self._stores = stores
        self._scope = scope
        self._wanted = destination
        self._report = report
        self._run = uuid.uuid4().hex[:12]
        self._loop = asyncio.get_running_loop()
        self._seen: set[str] = set()

    async def run(self, pieces: AsyncIterator[bytes]) -> list[tuple[str, Descriptor]]:
        """Store everything. Returns (name, target) of each image, name "" for one that has none; no row is written."""
        contents = await self._read(pieces)
        also = docker_names(contents) if "index.json" in contents.documents else {}
        found: list[tuple[str, Descriptor]] = []
        for image in images(contents):
            if image.made:
                await put(self._stores.content, self._stores.leases, self._scope, image.target, image.made)
            self._connect(image.target, frozenset())
            await self._unpack(image.target)
            found += [(name, image.target) for name in self._names(image, also)] or [("", image.target)]
        return found

    async def _read(self, pieces: AsyncIterator[bytes]) -> Contents:
        """Run the reader in a thread, and stop it when we are cancelled."""
        reader = BlockingReader(pieces, self._loop)
        work = asyncio.ensure_future(asyncio.to_thread(read_archive, reader, self._store))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            reader.stop()
            await asyncio.wait([work])
            raise

    def _names(self, image: FoundImage, also: dict[str, tuple[str, ...]]) -> list[str]:
        given = image.names
        if not given and graph.is_manifest(image.target):
            manifest = graph.read(self._stores.content, self._scope, image.target, Manifest)
            given = also.get(manifest.config.digest, ())
        names = [name for one in given or ("",) for name in of_archive(self._wanted, one, image.target.digest)]
        return list(dict.fromkeys(names))

    # Storing, in the reader's thread

    def _store(self, source: Source, size: int, expected: str, name: str) -> Stored:
        """One file of the archive as a blob."""
        content = self._stores.content
        ref = f"import-{self._run}-{len(self._seen)}"
        self._seen.add(ref)
        if expected:
            hold(self._stores.leases, self._scope, expected)
        writer = content.writer(self._scope, ref, size)
        try:
            head = _copy(source, writer, size, name)
            found = writer.digest()
            if not expected:
                hold(self._stores.leases, self._scope, found)
            self._commit(writer, size, expected, name)
        except BaseException:
            writer.close()
            with contextlib.suppress(NotFound):
                content.abort(self._scope, ref)
            raise
        blob = Descriptor("", expected or found, size)
        self._loop.call_soon_threadsafe(self._report, Event("downloaded", blob.digest, size, size, blob))
        return Stored(blob.digest, size, head)

    @staticmethod
    def _commit(writer: ContentWriter, size: int, expected: str, name: str) -> None:
        try:
            with contextlib.suppress(AlreadyExists):
                writer.commit(size, expected)
        except FailedPrecondition as error:
            raise DataLoss(f"archive is corrupt: {name} has another digest ({error.message})") from error

    # Connecting

    def _connect(self, target: Descriptor, above: frozenset[str]) -> None:
        """Labels from ``target`` down; raises ``InvalidArgument`` when a part is missing that must be there."""
        content, scope = self._stores.content, self._scope
        if not graph.has(content, scope, target.digest):
            raise InvalidArgument(f"archive is incomplete: blob {target.digest} is missing")
        if graph.is_index(target):
            index = graph.read(content, scope, target, Index)
            here = [one for one in index.manifests if graph.has(content, scope, one.digest)]
            if not here or target.digest in above:
                raise InvalidArgument(f"archive is incomplete: no manifest of index {target.digest} is in it")
            for child in here:
                self._connect(child, above | {target.digest})
            graph.keep_children(content, scope, target, index.manifests)
        elif graph.is_manifest(target):
            manifest = graph.read(content, scope, target, Manifest)
            blobs = (manifest.config, *manifest.layers)
            for blob in blobs:
                if not graph.has(content, scope, blob.digest):
                    raise InvalidArgument(f"archive is incomplete: blob {blob.digest} is missing")
            _check_plain_layers(content, scope, manifest)
            graph.keep_children(content, scope, target, blobs)

    async def _unpack(self, target: Descriptor) -> None:
        content, scope = self._stores.content, self._scope
        for unpack in self._wanted.unpacks:
            chosen: Descriptor | None = target
            if graph.is_index(target):
                index = graph.read(content, scope, target, Index)
                here = [one for one in index.manifests if graph.has(content, scope, one.digest)]
                chosen = platforms.best(unpack.platform or platforms.host(), here)
            if chosen is not None and graph.is_manifest(chosen):
                manifest = graph.read(content, scope, chosen, Manifest)
                await unpack_image(self._stores, scope, manifest, unpack, self._report)


def _copy(source: Source, writer: ContentWriter, size: int, name: str) -> bytes:
    """``size`` bytes into ``writer``; returns the first ones."""
    head = b""
    left = size
    while left:
        data = source.read(min(PIECE, left))
        if not data:
            raise DataLoss(f"archive is cut short within {name}")
        head = head or data[:HEAD]
        writer.write(data)
        left -= len(data)
    return head


def _check_plain_layers(content: ContentStore, scope: Scope, manifest: Manifest) -> None:
    """A layer that is not compressed is its own diff: what the config says about it can be checked at once."""
    layers = [layer for layer in manifest.layers if graph.is_layer(layer)]
    if not any(layer.media_type == MEDIA_LAYER for layer in layers):
        return
    diff_ids = graph.read(content, scope, manifest.config, ImageConfig).rootfs.diff_ids
    if len(diff_ids) != len(layers):
        raise DataLoss(f"archive is corrupt: an image of {len(layers)} layers has {len(diff_ids)} diff IDs")
    for layer, diff_id in zip(layers, diff_ids, strict=True):
        if layer.media_type == MEDIA_LAYER and layer.digest != diff_id:
            raise DataLoss(f"archive is corrupt: layer {layer.digest} should be {diff_id}")


def write_rows(
    stores: Stores, scope: Scope, found: list[tuple[str, Descriptor]], labels: dict[str, str], report: Report
) -> None:
    """Names for what was imported; an image without one stays on ``scope``'s lease."""
    for name, target in found:
        if name:
            save(stores, scope, name, target, labels)
        else:
            hold(stores.leases, scope, target.digest)
        report(Event("saved", name or target.digest, blob=target))
