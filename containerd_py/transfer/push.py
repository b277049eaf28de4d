"""Push: an image's blobs to a repository, what is there already left out, the name last.

Rule: a manifest is sent after everything it refers to; an upload that was cut goes on from the byte the registry says
it has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from containerd_py.interfaces import Scope
from containerd_py.registry.client import Patience
from containerd_py.registry.repository import Repository, Upload
from containerd_py.transfer import graph, platforms
from containerd_py.transfer.failures import first_failure
from containerd_py.transfer.fetch import REPORT_EVERY
from containerd_py.transfer.model import Event, Report, Stores
from oci.errors import DeadlineExceeded, GantryError, NotFound, OutOfRange, Unavailable
from oci.image import Descriptor, Index, Platform

PARALLEL = 4
PIECE = 1 << 20
CHUNK = 8 << 20
"""Bytes of one request where a whole blob in one was refused as too large."""


class Push:
    """One push on its way."""

    def __init__(
        self, stores: Stores, scope: Scope, repository: Repository, report: Report, patience: Patience
    ) -> None:
        self._stores = stores
        self._content = stores.content
        self._scope = scope
        self._repository = repository
        self._report = report
        self._patience = patience
        self._slots = asyncio.Semaphore(PARALLEL)

    async def run(self, target: Descriptor, wanted: list[Platform]) -> Descriptor:
        """Push ``target``, or the part of it that is here. Returns what the name points at now."""
        target = self._available(target, wanted)
        manifests, blobs = self._parts(target)
        for blob in blobs:
            self._report(Event("waiting", blob.digest, 0, blob.size, blob))
        try:
            async with asyncio.TaskGroup() as group:
                for blob in blobs:
                    group.create_task(self._blob(blob))
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from None
        for manifest in manifests:
            await self._manifest(manifest, manifest.digest)
        reference = self._repository.reference.tagged()
        await self._manifest(target, reference.tag or target.digest)
        return target

    def _available(self, target: Descriptor, wanted: list[Platform]) -> Descriptor:
        """``target`` when it is here whole, else the one manifest of it that is."""
        if not graph.is_index(target):
            return target
        index = graph.read(self._content, self._scope, target, Index)
        whole = [m for m in index.manifests if graph.complete(self._content, self._scope, m)]
        if wanted:
            whole = platforms.select(whole, wanted)
        elif len(whole) == len(index.manifests):
            return target
        images = [manifest for manifest in whole if platforms.is_image(manifest)]
        if not images:
            raise NotFound(f"image {target.digest}: none of its platforms is here", hint="pull it first")
        best = platforms.best(platforms.host(), images) or images[0]
        return Descriptor(best.media_type, best.digest, best.size)

    def _parts(self, target: Descriptor) -> tuple[list[Descriptor], list[Descriptor]]:
        """(manifests below ``target``, children first; blobs), each once."""
        manifests: dict[str, Descriptor] = {}
        blobs: dict[str, Descriptor] = {}

        def visit(parent: Descriptor) -> None:
            for child in graph.children(self._content, self._scope, parent):
                if graph.is_index(child) or graph.is_manifest(child):
                    if child.digest not in manifests:
                        visit(child)
                        manifests[child.digest] = child
                elif child.digest not in blobs:
                    blobs[child.digest] = child

        visit(target)
        return list(manifests.values()), list(blobs.values())

    async def _manifest(self, manifest: Descriptor, name: str) -> None:
        data = self._content.read(self._scope, manifest.digest)
        await self._repository.put_manifest(name, manifest.media_type, data)
        self._done(manifest)

    async def _blob(self, blob: Descriptor) -> None:
        async with self._slots:
            if await self._repository.has_blob(blob.digest):
                self._report(Event("exists", blob.digest, blob.size, blob.size, blob))
            elif await self._mounted(blob):
                self._report(Event("mounted", blob.digest, blob.size, blob.size, blob))
            else:
                await self._upload(blob)
                self._report(Event("uploaded", blob.digest, blob.size, blob.size, blob))
        self._done(blob)

    def _done(self, blob: Descriptor) -> None:
        reference = self._repository.reference
        graph.add_source(self._content, self._scope, blob.digest, reference.host, reference.path)

    async def _mounted(self, blob: Descriptor) -> bool:
        """Whether the registry took the blob from another of its repositories."""
        reference = self._repository.reference
        known = graph.sources(self._content, self._scope, blob.digest, reference.host)
        others = [name for name in known if name != reference.path]
        if not others:
            return False
        upload = await self._repository.begin_upload(blob.digest, others[0])
        return upload.location is None

    async def _upload(self, blob: Descriptor) -> None:
        failures = 0
        upload: Upload | None = None
        piece = blob.size
        while True:
            try:
                start = 0
                if upload is None:
                    upload = await self._repository.begin_upload(blob.digest)
                else:
                    upload, start = await self._resumed(blob, upload)
                if upload.location is not None:
                    upload = await self._sent(blob, upload, start, piece)
                    await self._repository.finish(upload, blob.digest)
                return
            except OutOfRange:
                # Something on the way takes only so many bytes in one request.
                if piece <= CHUNK:
                    raise
                upload, piece = None, CHUNK
            except (Unavailable, DeadlineExceeded):
                failures += 1
                if failures >= self._patience.tries:
                    raise
                seconds = self._patience.wait(failures - 1)
                self._report(Event("retrying", blob.digest, max(1, round(seconds)), 0, blob))
                await asyncio.sleep(seconds)

    async def _sent(self, blob: Descriptor, upload: Upload, start: int, piece: int) -> Upload:
        """Send the blob from ``start``, at most ``piece`` bytes in one request."""
        while start < blob.size:
            size = min(piece, blob.size - start)
            upload = await self._repository.send(upload, _Body(self, blob, start, size), start, size)
            start += size
        return upload

    async def _resumed(self, blob: Descriptor, upload: Upload) -> tuple[Upload, int]:
        """The upload to go on with and the byte to go on from; a new one when the registry forgot it."""
        try:
            found, start = await self._repository.received(upload)
        except (Unavailable, DeadlineExceeded):
            raise
        except GantryError:
            return await self._repository.begin_upload(blob.digest), 0
        if start > blob.size:
            return await self._repository.begin_upload(blob.digest), 0
        return found, start

    async def pieces(self, blob: Descriptor, start: int, size: int) -> AsyncIterator[bytes]:
        """``size`` of the blob's bytes from ``start``, telling now and then how far they went."""
        last = 0.0
        with self._content.open(self._scope, blob.digest) as opened:
            at, end = start, start + size
            while at < end and (data := await asyncio.to_thread(opened.read, min(PIECE, end - at), at)):
                yield data
                at += len(data)
                now = time.monotonic()
                if now - last >= REPORT_EVERY:
                    last = now
                    self._report(Event("uploading", blob.digest, at, blob.size, blob))


class _Body:
    """Makes the body of an upload anew for every try."""

    def __init__(self, push: Push, blob: Descriptor, start: int, size: int) -> None:
        self._push, self._blob, self._start, self._size = push, blob, start, size

    def __call__(self) -> AsyncIterator[bytes]:
        return self._push.pieces(self._blob, self._start, self._size)
