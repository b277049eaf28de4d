"""Pull: what a name points at, for the platforms asked for, into the stores, unpacked while it arrives.

Rule: everything is on a lease until the image's row and the labels below it hold it; the row is written last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from containerd_py.interfaces import Scope
from containerd_py.registry.repository import Repository
from containerd_py.transfer import graph, platforms
from containerd_py.transfer.failures import first_failure
from containerd_py.transfer.fetch import Fetcher, hold, put
from containerd_py.transfer.model import Destination, Event, Report, Stores, Unpack
from containerd_py.transfer.unpacking import unpack_image
from oci.errors import NotFound
from oci.image import Descriptor, Index, Manifest

PARALLEL = 4
"""Blobs one pull fetches at the same time."""


class Pull:
    """One pull on its way."""

    def __init__(
        self,
        stores: Stores,
        fetcher: Fetcher,
        scope: Scope,
        repository: Repository,
        destination: Destination,
        report: Report,
    ) -> None:
        self._stores = stores
        self._fetcher = fetcher
        self._scope = scope
        self._repository = repository
        self._wanted = destination
        self._report = report
        self._slots = asyncio.Semaphore(PARALLEL)

    async def run(self) -> Descriptor:
        """Everything but the image's row. Returns what the name points at."""
        name = str(self._repository.reference)
        self._report(Event("resolving", name))
        root, data = await self._repository.resolve()
        self._report(Event("resolved", name, blob=root))
        await put(self._stores.content, self._stores.leases, self._scope, root, data)
        self._source(root)
        try:
            async with asyncio.TaskGroup() as group:
                if graph.is_index(root):
                    await self._index(group, root, frozenset({root.digest}))
                else:
                    await self._manifest(group, root, self._unpacks_for(root, [root]))
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from None
        return root

    async def _index(self, group: asyncio.TaskGroup, target: Descriptor, above: frozenset[str]) -> None:
        content, scope = self._stores.content, self._scope
        index = graph.read(content, scope, target, Index)
        graph.keep_children(content, scope, target, index.manifests)
        chosen = platforms.select(index.manifests, self._wanted.platforms)
        if not chosen:
            asked = ", ".join(platforms.text(platform) for platform in self._wanted.platforms)
            raise NotFound(
                f"no matching manifest for {asked} in the manifest list entries of "
                f"{self._repository.reference.familiar}: not found"
            )
        for manifest in chosen:
            if manifest.digest in above:
                continue
            await self._document(manifest)
            if graph.is_index(manifest):
                await self._index(group, manifest, above | {manifest.digest})
            else:
                await self._manifest(group, manifest, self._unpacks_for(manifest, index.manifests))

    def _unpacks_for(self, manifest: Descriptor, all_of: Sequence[Descriptor]) -> list[Unpack]:
        """The unpacks asked for that ``manifest`` is the best answer to."""
        found = []
        for unpack in self._wanted.unpacks:
            best = platforms.best(unpack.platform or platforms.host(), all_of)
            if best is not None and best.digest == manifest.digest:
                found.append(unpack)
        return found

    async def _document(self, descriptor: Descriptor) -> None:
        """Fetch a manifest: small, verified in memory."""
        content = self._stores.content
        hold(self._stores.leases, self._scope, descriptor.digest)
        if not graph.has(content, self._scope, descriptor.digest):
            _, data = await self._repository.manifest(descriptor.digest, descriptor.media_type)
            await put(content, self._stores.leases, self._scope, descriptor, data)
        self._source(descriptor)

    async def _manifest(self, group: asyncio.TaskGroup, target: Descriptor, unpacks: Sequence[Unpack]) -> None:
        manifest = graph.read(self._stores.content, self._scope, target, Manifest)
        blobs = (manifest.config, *manifest.layers)
        graph.keep_children(self._stores.content, self._scope, target, blobs)
        for blob in blobs:
            self._report(Event("waiting", blob.digest, 0, blob.size, blob))
        tasks: dict[str, asyncio.Task[None]] = {}
        for blob in blobs:
            if blob.digest not in tasks:
                tasks[blob.digest] = group.create_task(self._blob(blob))
        for unpack in unpacks:
            group.create_task(self._unpack(manifest, tasks, unpack))

    async def _blob(self, blob: Descriptor) -> None:
        async with self._slots:
            await self._fetcher.fetch(self._scope, blob, self._repository, self._report)
        self._source(blob)

    async def _unpack(self, manifest: Manifest, tasks: dict[str, asyncio.Task[None]], unpack: Unpack) -> None:
        await asyncio.shield(tasks[manifest.config.digest])
        await unpack_image(self._stores, self._scope, manifest, unpack, self._report, tasks)

    def _source(self, blob: Descriptor) -> None:
        reference = self._repository.reference
        graph.add_source(self._stores.content, self._scope, blob.digest, reference.host, reference.path)
