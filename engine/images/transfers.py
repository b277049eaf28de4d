"""Pull, push, load and save: the Transfer service of containerd, told in Docker's words.

Rule: containerd moves the bytes; here requests are built, progress is translated and events are told. Leaving an
iteration early (the client went away) cancels the transfer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any

from google.protobuf.message import Message

from engine.backend import translated
from engine.calls import TRIES, HungUp
from engine.images.catalog import Catalog
from engine.images.containerd import Containerd, descriptor_of
from engine.images.credentials import Credentials
from engine.images.names import Names
from engine.images.progress import Json, Translator
from engine.images.records import Image
from engine.images.removal import Tell
from engine.images.streams import Stream, cancelled, pack
from engine.images.unpack import Unpacker
from oci.errors import GantryError, NotFound, PermissionDenied, Unauthenticated
from oci.image import Descriptor, Platform
from oci.reference import DEFAULT_HOST, Reference
from oci.trust import Trust, trust_of
from protos.containerd import transfer_pb2, transfer_types_pb2, types_pb2

TYPES = transfer_types_pb2
TAR = "application/x-tar"
LOCAL = ("localhost", "127.", "[::1]")


class Registries:
    """How registries are reached: ``insecure`` ones and those on this machine may be spoken to by plain HTTP."""

    def __init__(self, insecure: Iterable[str] = (), mirrors: Iterable[str] = ()) -> None:
        self.reconfigure(insecure, mirrors)

    def reconfigure(self, insecure: Iterable[str], mirrors: Iterable[str] = ()) -> None:
        """Other insecure registries, and mirrors (base URLs) of the default one, from now on."""
        self._insecure = frozenset(insecure)
        self._mirrors = tuple(url.rstrip("/") for url in mirrors)

    def bases(self, host: str) -> tuple[str, ...]:
        """Base URLs where ``host`` may be asked: its mirrors, at the end itself."""
        where = f"registry-1.{host}" if host == DEFAULT_HOST else host
        return (*(self._mirrors if host == DEFAULT_HOST else ()), f"https://{where}")

    def plain(self, host: str) -> bool:
        """Whether ``host`` may be spoken to by HTTP."""
        name = host if host.startswith("[") else host.partition(":")[0]
        return host in self._insecure or name == "localhost" or name.startswith(LOCAL[1:])

    def trust(self, host: str) -> Trust:
        """Whom to believe at ``host``: its ``certs.d``, or anybody where an administrator said so."""
        found = trust_of(host)
        return found._replace(skip_verify=self.plain(host) and not found.ca)

    def source(self, reference: Reference, auth_stream: str) -> TYPES.OCIRegistry:
        """The registry's side of a transfer."""
        # No default scheme: containerd-py knows the insecure registries and tries HTTPS before HTTP there.
        resolver = TYPES.RegistryResolver(auth_stream=auth_stream)
        return TYPES.OCIRegistry(reference=str(reference), resolver=resolver)


def platform_message(platform: Platform) -> types_pb2.Platform:
    """``platform`` as containerd's message."""
    return types_pb2.Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant)


class Transfers:
    """Runs transfers."""

    def __init__(
        self,
        containerd: Containerd,
        catalog: Catalog,
        unpacker: Unpacker,
        names: Names,
        tell: Tell,
        registries: Registries,
    ) -> None:
        self._containerd = containerd
        self._catalog = catalog
        self._unpacker = unpacker
        self._names = names
        self._tell = tell
        self._registries = registries

    @contextlib.asynccontextmanager
    async def _running(
        self,
        build: Callable[[str], tuple[Message, Message]],
        metadata: Any,
        credentials: Credentials | None = None,
    ) -> AsyncIterator[AsyncIterator[TYPES.Progress]]:
        """A transfer under way and its progress; ``build(auth stream)`` gives source and destination."""
        backend = self._containerd.backend
        async with contextlib.AsyncExitStack() as stack:
            progress = await stack.enter_async_context(Stream(backend, metadata))
            auth, answering = "", None
            if credentials is not None and not credentials.empty:
                stream = await stack.enter_async_context(Stream(backend, metadata))
                auth, answering = stream.id, asyncio.create_task(stream.answer(credentials.answer))
            source, destination = build(auth)
            request = transfer_pb2.TransferRequest(
                source=pack(source),
                destination=pack(destination),
                options=transfer_pb2.TransferOptions(progress_stream=progress.id),
            )
            task = asyncio.create_task(self._transfer(request, metadata))
            try:
                yield _until(progress, task)
            finally:
                await cancelled(*(t for t in (task, answering) if t is not None))

    async def _events(
        self, build: Callable[[str], tuple[Message, Message]], metadata: Any, credentials: Credentials
    ) -> AsyncGenerator[TYPES.Progress, None]:
        """The progress of a pull or push: one whose supervisor died goes on with the next, where it had got to."""
        for left in reversed(range(TRIES)):
            try:
                async with self._running(build, metadata, credentials) as events:
                    async for event in events:
                        yield event
                return
            except HungUp:
                if not left:
                    raise

    async def _transfer(self, request: transfer_pb2.TransferRequest, metadata: Any) -> None:
        with translated():
            await self._containerd.backend.transfer.Transfer(request, metadata=metadata)

    async def pull(
        self, reference: Reference, credentials: Credentials, platform: Platform | None
    ) -> AsyncGenerator[Json, None]:
        """Docker's messages of one pull; the image is unpacked, named and told of when they end."""
        platform = platform or self._catalog.wanted
        before = await self._names.current(reference)
        # Between the name's change and its next one no collection may take what the name leaves.
        held = () if before is None else (before.target,)
        shown = reference.digest or reference.tag
        path = reference.path if reference.host != "" else reference.familiar_name

        def build(auth: str) -> tuple[Message, Message]:
            wanted = platform_message(platform)
            unpack = TYPES.UnpackConfiguration(platform=wanted, snapshotter=self._containerd.snapshotter)
            store = TYPES.ImageStore(name=str(reference), platforms=[wanted], unpacks=[unpack])
            return self._registries.source(reference, auth), store

        translate = Translator(Translator.PULL)
        started = False
        target: Descriptor | None = None
        try:
            async with (
                self._containerd.leased(*held) as metadata,
                contextlib.aclosing(self._events(build, metadata, credentials)) as events,
            ):
                async for event in events:
                    blob = descriptor_of(event.desc) if event.HasField("desc") else None
                    if not started and event.event not in ("resolving", "retrying"):
                        started = True
                        yield {"status": f"Pulling from {path}", "id": shown}
                    if event.event in ("resolved", "saved") and blob is not None and blob.digest:
                        target = blob
                        translate.unchanged = before is not None and before.target.digest == blob.digest
                    for line in translate(event.event, event.name, event.progress, event.total, blob):
                        yield line
                record = await self._containerd.get(str(reference))
                target = record.target
                await self._names.settle(before, target)
                await self._unpacker.ensure(await self._catalog.decode(target, platform))
        except GantryError as error:
            raise pull_error(error, reference, credentials) from error
        if not started:
            yield {"status": f"Pulling from {path}", "id": shown}
        yield {"status": f"Digest: {target.digest}"}
        fresh = before is None or before.target.digest != target.digest
        self._tell_pull(reference)
        yield {
            "status": f"Status: Downloaded newer image for {reference.familiar}"
            if fresh
            else f"Status: Image is up to date for {reference.familiar}"
        }

    def _tell_pull(self, reference: Reference) -> None:
        self._tell(None, "pull", reference.familiar)

    async def push(self, image: Image, reference: Reference, credentials: Credentials) -> AsyncGenerator[Json, None]:
        """Docker's messages of one push."""
        yield {"status": f"The push refers to repository [{reference.name}]"}

        def build(auth: str) -> tuple[Message, Message]:
            return TYPES.ImageStore(name=str(reference)), self._registries.source(reference, auth)

        translate = Translator(Translator.PUSH)
        try:
            async with (
                self._containerd.leased() as metadata,
                contextlib.aclosing(self._events(build, metadata, credentials)) as events,
            ):
                async for event in events:
                    blob = descriptor_of(event.desc) if event.HasField("desc") else None
                    for line in translate(event.event, event.name, event.progress, event.total, blob):
                        yield line
        except GantryError as error:
            raise push_error(error, reference) from error
        target = next(r.target for r in image.records if r.name == str(reference))
        yield {"status": f"{reference.tag}: digest: {target.digest} size: {target.size}"}
        yield {"progressDetail": {}, "aux": {"Tag": reference.tag, "Digest": target.digest, "Size": target.size}}
        self._tell(None, "push", reference.familiar)

    async def load(
        self, pieces: AsyncIterator[bytes], platform: Platform | None, quiet: bool
    ) -> AsyncGenerator[Json, None]:
        """Docker's messages of one load; images are unpacked when they end."""
        platform = platform or self._catalog.wanted
        before = {record.name: record for record in await self._containerd.list()}
        translate = Translator(Translator.LOAD)
        saved: dict[str, Descriptor] = {}
        held = (record.target for record in before.values())  # as in a pull: which of them lose their name is not known
        async with self._containerd.leased(*held) as metadata, Stream(self._containerd.backend, metadata) as archive:

            def build(auth: str) -> tuple[Message, Message]:
                wanted = platform_message(platform)
                unpack = TYPES.UnpackConfiguration(platform=wanted, snapshotter=self._containerd.snapshotter)
                everything = TYPES.ImageReference(name="", is_prefix=True, allow_overwrite=True)
                store = TYPES.ImageStore(unpacks=[unpack], extra_references=[everything])
                return TYPES.ImageImportStream(stream=archive.id, media_type=""), store

            async with self._running(build, metadata) as events:
                sending = asyncio.create_task(archive.upload(pieces))
                try:
                    async for event in events:
                        blob = descriptor_of(event.desc) if event.HasField("desc") else None
                        if event.event == "saved" and blob is not None:
                            saved[event.name] = blob
                        lines = translate(event.event, event.name, event.progress, event.total, blob)
                        for line in () if quiet else lines:
                            yield line
                finally:
                    await cancelled(sending)
            if not saved:
                saved = {
                    r.name: r.target
                    for r in await self._containerd.list()
                    if r.name not in before or before[r.name].updated_at != r.updated_at
                }
            for name, target in saved.items():
                yield await self._loaded(name, target, before)

    async def _loaded(self, name: str, target: Descriptor, before: dict[str, Any]) -> Json:
        self._catalog.forget()
        decoded = await self._catalog.decode(target)
        await self._unpacker.ensure(decoded)
        record = next((r for r in await self._containerd.list() if r.name == name), None)
        reference = record.reference if record is not None else None
        if reference is None:
            await self._names.keep(target)
        else:
            await self._names.settle(before.get(name), target)
        image = Image(decoded, (record,) if record is not None else ())
        self._tell(image, "load", image.id)
        shown = f"Loaded image: {reference.familiar}" if reference is not None else f"Loaded image ID: {image.id}"
        return {"stream": f"{shown}\n"}

    async def save(self, names: list[str], platform: Platform | None) -> AsyncGenerator[bytes, None]:
        """A tar (OCI layout and ``docker save`` in one) with these names of containerd."""
        platform = platform or self._catalog.wanted
        async with self._containerd.leased() as metadata, Stream(self._containerd.backend, metadata) as archive:

            def build(auth: str) -> tuple[Message, Message]:
                wanted = [platform_message(platform)]
                extra = [TYPES.ImageReference(name=name) for name in names]
                store = TYPES.ImageStore(name=names[0] if len(names) == 1 else "", extra_references=extra)
                return store, TYPES.ImageExportStream(stream=archive.id, media_type="", platforms=wanted)

            async with self._running(build, metadata) as events:
                watching = asyncio.create_task(_drain(events))
                try:
                    async for piece in _first_of(archive.download(), watching):
                        yield piece
                    await watching
                finally:
                    await cancelled(watching)


async def _drain(events: AsyncIterator[TYPES.Progress]) -> None:
    async for _ in events:
        pass


async def _first_of(pieces: AsyncIterator[bytes], watching: asyncio.Task[None]) -> AsyncIterator[bytes]:
    """``pieces`` until they end; an error of the transfer ends them too."""
    while True:
        step = asyncio.ensure_future(anext(pieces, None))
        await asyncio.wait({step, watching} if not watching.done() else {step}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and watching.exception() is not None:
            step.cancel()
            watching.result()
        piece = await step
        if piece is None:
            return
        yield piece


async def _until(progress: Stream, task: asyncio.Task[None]) -> AsyncIterator[TYPES.Progress]:
    """Progress until ``task`` is done and nothing more is said; raises the task's error."""
    events = progress.progress()
    step: asyncio.Future[TYPES.Progress | None] | None = None
    ended = False
    try:
        while not (task.done() and ended):
            if step is None and not ended:
                step = asyncio.ensure_future(anext(events, None))
            waiting: set[asyncio.Future[Any]] = {f for f in (step, None if task.done() else task) if f is not None}
            # Once the transfer is over, what was said before that is still on its way, but not for long.
            done, _ = await asyncio.wait(
                waiting, return_when=asyncio.FIRST_COMPLETED, timeout=1.0 if task.done() else None
            )
            if task.done() and task.exception() is not None:
                break
            if not done:
                break
            if step is not None and step.done():
                try:
                    event = step.result()
                except GantryError:
                    event = None
                step = None
                if event is None:
                    ended = True
                else:
                    yield event
        await task
    finally:
        if step is not None:
            step.cancel()


def pull_error(error: GantryError, reference: Reference, credentials: Credentials) -> GantryError:
    """``error`` of a pull in Docker's words where Docker has words for it."""
    if isinstance(error, NotFound) and "no matching manifest" not in error.message:
        return NotFound(f"manifest for {reference.familiar} not found: manifest unknown: manifest unknown")
    if isinstance(error, (PermissionDenied, Unauthenticated)):
        if not credentials.empty:
            return type(error)(f"pull access denied for {reference.familiar_name}: {error.message}")
        return NotFound(
            f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
            "'docker login': denied: requested access to the resource is denied"
        )
    return error


def push_error(error: GantryError, reference: Reference) -> GantryError:
    """``error`` of a push in Docker's words."""
    if isinstance(error, (PermissionDenied, Unauthenticated)):
        return type(error)(f"denied: requested access to the resource is denied: {error.message}")
    return error
