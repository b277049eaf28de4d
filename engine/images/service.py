"""The image service: what ``engine.api.images`` and the container service call.

Rule: this class wires and keeps the one hot path, ``resolve``; everything else is in the modules around it. What
``resolve`` remembers is dropped by our own changes at once, and by containerd's events when somebody else made them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

import structlog

from engine.backend import Backend, translated
from engine.events import EventBus
from engine.images import listing
from engine.images.assembly import Assembler
from engine.images.catalog import Catalog, no_such_image, other_platform
from engine.images.commit import CommitRequest, Committer
from engine.images.containerd import Containerd
from engine.images.importing import Importer
from engine.images.listing import Listing
from engine.images.names import Names, check_name
from engine.images.records import Image
from engine.images.registry import Registry
from engine.images.removal import Deleted, Remover
from engine.images.transfers import Registries, Transfers
from engine.images.unpack import Unpacker
from engine.images.views import Json, Sizes, Version, Views, unix_nanoseconds
from engine.interfaces import ContainerUse, LocalImage
from engine.platforms import suits
from oci import reference as references
from oci.errors import GantryError, NotFound
from oci.image import Platform
from oci.reference import Reference
from protos.containerd import event_types_pb2, events_pb2

log = structlog.get_logger()

RETRY_SECONDS = 1.0


class CommitSource(Protocol):
    """What commit asks of containers; set ``ImageService.containers`` once both exist."""

    def find(self, reference: str) -> Any:
        """The container (its ``doc`` is ``engine.containers.model.Container``); raises ``NotFound``."""


class ImageService:
    """Implements ``engine.interfaces.Images``."""

    containers: CommitSource | None = None

    def __init__(
        self,
        backend: Backend,
        bus: EventBus,
        users: ContainerUse,
        insecure: Iterable[str] = (),
        mirrors: Iterable[str] = (),
    ) -> None:
        self.containerd = Containerd(backend)
        self.catalog = Catalog(self.containerd)
        self.names = Names(self.containerd, self.catalog)
        self.unpacker = Unpacker(self.containerd)
        self.assembler = Assembler(self.containerd, self.catalog, self.unpacker, self.names)
        self.importer = Importer(self.containerd, self.assembler, self.catalog.wanted)
        self.sizes = Sizes(self.containerd)
        self.views = Views(self.containerd, self.catalog, self.sizes)
        self.listing = Listing(self.catalog)
        self.registries = registries = Registries(insecure, mirrors)
        self.registry = Registry(registries)
        self.transfers = Transfers(self.containerd, self.catalog, self.unpacker, self.names, self.tell, registries)
        self.remover = Remover(self.containerd, self.catalog, users, self.tell)
        self.committer = Committer(self.containerd, self.catalog, self.assembler, self.unpacker)
        self._bus = bus
        self._users = users
        self._resolved: dict[str, LocalImage] = {}
        self._watched = False
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Follow containerd's image events, so that ``resolve`` may answer from memory."""
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop following."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher

    async def count(self) -> int:
        """How many images there are."""
        return len(await self.catalog.all())

    # The hot path

    async def resolve(self, reference: str, platform: Platform | None = None) -> LocalImage:
        """See ``engine.interfaces.Images``."""
        if platform is not None:
            return await self._look_up(reference, platform)
        known = self._resolved.get(reference)
        if known is not None and self._watched:
            return known
        local = await self._look_up(reference)
        if self._watched:
            self._resolved[reference] = local
        return local

    async def _look_up(self, reference: str, platform: Platform | None = None) -> LocalImage:
        record = await self.catalog.find_record(reference)
        try:
            decoded = await self.catalog.decode(record.target)
            if platform is not None and not suits(decoded.config, platform):
                # Another of an index's platforms may be here; a single image stays what it is.
                with contextlib.suppress(NotFound):
                    decoded = await self.catalog.decode(record.target, platform)
        except NotFound:
            self.catalog.forget()
            raise no_such_image(reference) from None
        if platform is not None and not suits(decoded.config, platform):
            raise other_platform(reference, decoded.config, platform)
        await self.unpacker.ensure(decoded)
        named = record.reference
        return LocalImage(
            decoded.id,
            named.familiar if named is not None else "",
            record.target,
            decoded.manifest,
            decoded.config,
            decoded.chain_id,
            self.containerd.snapshotter,
        )

    async def in_use(self, image_id: str) -> bool:
        """See ``engine.interfaces.Images``."""
        return bool(self._users.users_of_image(image_id))

    async def _watch(self) -> None:
        """Drop what is remembered when images or their snapshots change; for ever, through restarts of containerd."""
        filters = ["topic~=^/images/", "topic==/snapshot/remove"]
        while True:
            try:
                with translated():
                    stream = self.containerd.backend.events.Subscribe(events_pb2.SubscribeRequest(filters=filters))
                    await stream.initial_metadata()
                    self._watched = True
                    async for envelope in stream:
                        self._changed(envelope.topic, envelope.event.value)
            except GantryError as error:
                log.debug("lost the events of images", error=str(error))
            finally:
                self._watched = False
                self._resolved.clear()
            await asyncio.sleep(RETRY_SECONDS)

    def _changed(self, topic: str, event: bytes) -> None:
        if topic == "/snapshot/remove":
            key = event_types_pb2.SnapshotRemove.FromString(event).key
            if not any(image.chain_id == key for image in self._resolved.values()):
                return
        self._resolved.clear()

    def changed(self) -> None:
        """Forget what names meant: called after every change of our own."""
        self._resolved.clear()

    # What the API serves

    def tell(self, image: Image | None, action: str, name: str) -> None:
        """Publish an image event: its actor is the id, or the name where Docker shows that (pull, push)."""
        self.changed()
        labels = dict(image.decoded.config.config.labels or {}) if image is not None else {}
        if image is None:
            shown = references.parse(name).familiar_name
            self._bus.publish("image", action, name, {"name": shown})
        else:
            self._bus.publish("image", action, image.id, {**labels, "name": name})

    async def summaries(
        self, filters: listing.Filters, version: Version, *, every: bool = False, shared: bool = False,
        manifests: bool = False,
    ) -> list[Json]:  # fmt: skip
        """``GET /images/json``."""
        images = await self.listing.choose(filters, every=every)
        sizes = await self.sizes.shared(await self.catalog.all()) if shared else {}
        answer = []
        for image in images:
            entry = await self.views.summary(image, version)
            if shared:
                entry["SharedSize"] = sizes.get(image.id, 0)
            if manifests and version >= (1, 47):
                entry["Manifests"] = await self.views.manifests(image)
            answer.append(entry)
        return answer

    async def disk_usage(self, version: Version) -> tuple[int, list[Json]]:
        """The image part of ``GET /system/df``: (``LayersSize``, ``Images`` with shared sizes and container counts)."""
        images = await self.catalog.all()
        shared = await self.sizes.shared(images)
        entries = []
        for image in await self.listing.choose({}):
            entry = await self.views.summary(image, version)
            users = len(self._users.users_of_image(image.id))
            entries.append(entry | {"SharedSize": shared.get(image.id, 0), "Containers": users})
        return await self.sizes.total(images), entries

    async def tag(self, source: str, target: Reference) -> None:
        """``POST /images/{name}/tag``."""
        image = await self.catalog.find(source)
        await self.names.assign(check_name(target), image.records[0].target)
        self.tell(image, "tag", target.familiar)

    async def remove(self, text: str, *, force: bool, prune: bool) -> Deleted:
        """``DELETE /images/{name}``."""
        try:
            return await self.remover.remove(text, force=force, prune=prune)
        finally:
            self.changed()

    async def prune(self, filters: listing.Filters) -> Json:
        """``POST /images/prune``: dangling images, or with ``dangling=false`` all that no container uses."""
        listing.check_keys(filters, listing.PRUNE_KEYS)
        only_dangling = listing.boolean(filters, "dangling", True)
        latest = min((listing.moment(text) for text in filters.get("until", [])), default=None)
        before = await self.sizes.total(await self.catalog.all())
        done: Deleted = []
        for image in await self.listing.choose({}, every=True):
            labels = image.decoded.config.config.labels or {}
            if latest is not None and unix_nanoseconds(image.decoded.config.created) >= latest:
                continue
            if not listing.matches_labels(labels, filters.get("label", [])):
                continue
            if any(listing.matches_labels(labels, [text]) for text in filters.get("label!", [])):
                continue
            if only_dangling and not image.dangling:
                continue
            if await self.remover.conflict(image, force=False, names_count=False) is None:
                await self.remover.delete(image, done, prune=True)
        reclaimed = before - await self.sizes.total(await self.catalog.all())
        self.changed()
        self._bus.publish("image", "prune", "", {"reclaimed": str(reclaimed)})
        return {"ImagesDeleted": done or None, "SpaceReclaimed": reclaimed}

    async def commit(self, request: CommitRequest) -> str:
        """``POST /commit``: the id of the new image."""
        assert self.containers is not None, "the engine wires containers before it serves"
        machine = self.containers.find(request.container)
        decoded = await self.committer.commit(machine.doc, request)
        self.changed()
        attributes = {"comment": request.comment, "imageID": decoded.id, "name": machine.doc.name}
        if request.reference is not None:
            attributes["imageRef"] = request.reference.familiar
        self._bus.publish(
            "container",
            "commit",
            machine.doc.id,
            {**(machine.doc.config.labels or {}), "image": machine.doc.config.image, **attributes},
        )
        return decoded.id

    async def import_archive(
        self,
        pieces: AsyncIterator[bytes],
        reference: Reference | None,
        message: str,
        changes: list[str],
        platform: Platform | None = None,
    ) -> str:
        """``POST /images/create?fromSrc=…``: the id of the new image."""
        decoded = await self.importer.import_archive(
            pieces, reference, message or "Imported from -", changes, platform=platform
        )
        self.tell(Image(decoded, ()), "import", decoded.id)
        return decoded.id

    async def save(self, texts: list[str]) -> list[str]:
        """Names of containerd for what ``texts`` mean: the name asked for, or every name of an id."""
        found: list[str] = []
        for text in texts:
            image = await self.catalog.find(text)
            wanted = self.names_meant(image, text)
            found += [record.name for record in wanted]
            self.tell(image, "save", image.id)
        return list(dict.fromkeys(found))

    @staticmethod
    def names_meant(image: Image, text: str) -> list[Any]:
        """The records of ``image`` that ``text`` names; one for an id."""
        from engine.images.catalog import names

        with contextlib.suppress(GantryError):
            reference = references.parse(text).tagged()
            if found := [record for record in image.records if names(record, reference)]:
                return found
        return [next((r for r in image.records if r.dangling), image.records[0])]

    @staticmethod
    def now() -> int:
        """Seconds since the epoch."""
        return int(time.time())
