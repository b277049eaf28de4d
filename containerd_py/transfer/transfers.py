"""The direct calls of this room: pull, push, tag, import, export.

Rule: a transfer works under a lease: the caller's, or one of its own that ends with it. What was written is on disk
before a call returns.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from containerd_py.archives.writer import write_archive
from containerd_py.interfaces import GC_EXPIRE, Image, Scope
from containerd_py.registry.auth import CredentialsSource
from containerd_py.registry.client import Http, Patience
from containerd_py.registry.hosts import RegistryConfig
from containerd_py.registry.repository import Repository
from containerd_py.transfer.exporting import Plan
from containerd_py.transfer.fetch import Fetcher, hold
from containerd_py.transfer.importing import Import, write_rows
from containerd_py.transfer.model import Destination, Event, Report, Stores
from containerd_py.transfer.names import save
from containerd_py.transfer.pull import Pull
from containerd_py.transfer.push import Push
from oci import reference as references
from oci.errors import InvalidArgument, NotFound
from oci.image import Descriptor, Platform

LEASE_LIFE = datetime.timedelta(hours=24)


def silent(_event: Event) -> None:
    """A report nobody reads."""


class Transfers:
    """All transfers of a daemon. ``close`` it at the end."""

    def __init__(self, stores: Stores, config: RegistryConfig | None = None, patience: Patience | None = None) -> None:
        self._stores = stores
        self._config = config or RegistryConfig()
        self._patience = patience or Patience()
        self._http = Http(self._patience)
        self.fetcher = Fetcher(stores.content, stores.leases, self._patience)

    async def close(self) -> None:
        """Close the connections to registries."""
        await self._http.close()

    def repository(
        self,
        reference: str,
        credentials: CredentialsSource | None = None,
        headers: Mapping[str, str] = {},
        host_dir: str = "",
        scheme: str = "",
    ) -> Repository:
        """The repository that ``reference`` names, seen with these credentials."""
        parsed = references.parse(reference)
        return Repository(self._http, self._config, parsed, credentials, headers, host_dir, scheme)

    async def pull(
        self, scope: Scope, repository: Repository, destination: Destination, report: Report = silent
    ) -> Descriptor:
        """Have what ``repository.reference`` points at, named ``destination.name``. Returns its target."""
        name = destination.name or str(repository.reference.tagged())
        repository.visitor.on_retry = lambda seconds: report(Event("retrying", name, max(1, round(seconds))))
        with self._leased(scope) as held:
            target = await Pull(self._stores, self.fetcher, held, repository, destination, report).run()
            for one in dict.fromkeys([name, *(extra.name for extra in destination.extra if not extra.prefix)]):
                save(self._stores, held, one, target, dict(destination.labels))
            await self._stores.flushed()
        report(Event("saved", name, blob=target))
        return target

    async def push(
        self,
        scope: Scope,
        name: str,
        repository: Repository,
        platforms: Sequence[Platform] = (),
        report: Report = silent,
    ) -> Descriptor:
        """Push the image ``name``. Returns what the repository's tag points at. Raises ``NotFound``."""
        image = self._stores.images.get(scope, name)
        shown = str(repository.reference.tagged())
        repository.visitor.on_retry = lambda seconds: report(Event("retrying", shown, max(1, round(seconds))))
        with self._leased(scope) as held:
            hold(self._stores.leases, held, image.target.digest)
            push = Push(self._stores, held, repository, report, self._patience)
            target = await push.run(image.target, list(platforms))
        report(Event("saved", shown, blob=target))
        return target

    async def tag(self, scope: Scope, name: str, destination: Destination, report: Report = silent) -> None:
        """Give the image ``name`` further names. Raises ``NotFound``, ``InvalidArgument``."""
        target = self._stores.images.get(scope, name).target
        names = [destination.name, *(extra.name for extra in destination.extra if not extra.prefix)]
        if not any(names):
            raise InvalidArgument(f"tag {name}: no name to give it")
        for one in filter(None, names):
            save(self._stores, scope, one, target, dict(destination.labels))
            report(Event("saved", one, blob=target))
        await self._stores.flushed()

    async def import_archive(
        self, scope: Scope, pieces: AsyncIterator[bytes], destination: Destination, report: Report = silent
    ) -> list[tuple[str, Descriptor]]:
        """Store an archive's images. Returns (name, target); "" names one that only the caller's lease holds."""
        with self._leased(Scope(scope.namespace)) as own:
            found = await Import(self._stores, own, destination, report).run(pieces)
            write_rows(self._stores, scope, found, dict(destination.labels), report)
            await self._stores.flushed()
        return found

    async def export_archive(
        self, scope: Scope, names: Sequence[str], platforms: Sequence[Platform] = (), docker: bool = True
    ) -> AsyncIterator[bytes]:
        """An archive of the images ``names`` (a digest stands for an image without a name). Raises ``NotFound``."""
        with self._leased(scope) as held:
            plan = Plan(self._stores.content, held, platforms, docker)
            for name in names:
                image, named = self._image(held, name)
                hold(self._stores.leases, held, image.target.digest)
                plan.add(image, named)
            async for piece in write_archive(
                self._stores.content, held, list(plan.images.values()), list(plan.blobs.values())
            ):
                yield piece

    def _image(self, scope: Scope, name: str) -> tuple[Image, bool]:
        """The image of that name, or one whose target has that digest (then it is exported without a name)."""
        try:
            return self._stores.images.get(scope, name), True
        except NotFound:
            matching = self._stores.images.list(scope, [f"target.digest=={name}"]) if name.startswith("sha256:") else []
            if not matching:
                raise
            return matching[0], False

    @contextlib.contextmanager
    def _leased(self, scope: Scope) -> Iterator[Scope]:
        """``scope`` with a lease: its own, or one that ends with the block."""
        if scope.lease:
            yield scope
            return
        expires = (datetime.datetime.now(datetime.UTC) + LEASE_LIFE).isoformat().replace("+00:00", "Z")
        lease = self._stores.leases.create(scope, "", {GC_EXPIRE: expires})
        try:
            yield Scope(scope.namespace, lease.id)
        finally:
            with contextlib.suppress(NotFound):
                self._stores.leases.delete(scope, lease.id)
