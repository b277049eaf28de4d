"""``containerd.services.transfer.v1``: sources and destinations on the wire to calls of ``transfer.Transfers``.

Rule: streams named in a request are closed when the request is over, whatever came of it. A pair of ends that is no
transfer is refused with its names.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from containerd_py.interfaces import Scope
from containerd_py.registry.auth import Credentials, CredentialsSource
from containerd_py.registry.repository import Repository
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.rpcs import TransferServicer
from containerd_py.services.streaming import Stream, Streams, unpack
from containerd_py.transfer.model import Destination, Event, ExtraName, Report, Unpack
from containerd_py.transfer.transfers import Transfers
from oci.errors import GantryError, InvalidArgument, Unimplemented
from oci.image import Descriptor, Platform
from protos.containerd import transfer_pb2, types_pb2
from protos.containerd import transfer_types_pb2 as types

_KINDS: dict[str, type[Message]] = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (types.OCIRegistry, types.ImageStore, types.ImageImportStream, types.ImageExportStream)
}


@served(transfer_pb2.DESCRIPTOR.services_by_name["Transfer"])
class TransferService(TransferServicer):
    """Transfers over gRPC."""

    def __init__(self, transfers: Transfers, streams: Streams) -> None:
        self._transfers = transfers
        self._streams = streams

    async def Transfer(self, request: transfer_pb2.TransferRequest, context: Context) -> Empty:
        """One transfer; returns when it is done. Cancelling the call cancels it."""
        where = scope(context)
        source, destination = _end(request.source), _end(request.destination)
        with contextlib.ExitStack() as stack:
            work = self._work(where, source, destination, stack)
            async with self._progress(where, request.options.progress_stream) as report:
                await work(report)
        return Empty()

    def _work(
        self, where: Scope, source: Message | None, destination: Message | None, stack: contextlib.ExitStack
    ) -> Callable[[Report], Awaitable[object]]:
        """The call that moves ``source`` to ``destination``."""
        transfers = self._transfers
        match source, destination:
            case types.OCIRegistry(), types.ImageStore():
                origin = self._repository(where, source, stack)
                return lambda report: transfers.pull(where, origin, _destination(destination), report)
            case types.ImageStore(), types.OCIRegistry():
                target, wanted = self._repository(where, destination, stack), _platforms(source.platforms)
                return lambda report: transfers.push(where, source.name, target, wanted, report)
            case types.ImageStore(), types.ImageStore():
                return lambda report: transfers.tag(where, source.name, _destination(destination), report)
            case types.ImageImportStream(), types.ImageStore():
                archive = self._taken(where, source.stream, stack)
                return lambda report: transfers.import_archive(
                    where, archive.download(), _destination(destination), report
                )
            case types.ImageStore(), types.ImageExportStream():
                archive = self._taken(where, destination.stream, stack)
                return lambda report: self._export(where, source, destination, archive, report)
        raise Unimplemented(f"transfer from {_name(source)} to {_name(destination)} is not supported")

    async def _export(
        self,
        where: Scope,
        source: types.ImageStore,
        destination: types.ImageExportStream,
        archive: Stream,
        report: Report,
    ) -> None:
        names = list(dict.fromkeys(filter(None, [source.name, *(one.name for one in source.extra_references)])))
        if not names:
            raise InvalidArgument("export: no image is named")
        wanted = () if destination.all_platforms else _platforms(destination.platforms or source.platforms)
        pieces = self._transfers.export_archive(where, names, wanted, not destination.skip_compatibility_manifest)
        async with contextlib.aclosing(pieces):  # type: ignore[type-var]  # an async generator by its definition
            await archive.upload(pieces)
        report(Event("saved", names[0]))

    def _taken(self, where: Scope, id: str, stack: contextlib.ExitStack) -> Stream:
        stream = self._streams.get(where, id)
        stack.callback(stream.close)
        return stream

    def _repository(self, where: Scope, registry: types.OCIRegistry, stack: contextlib.ExitStack) -> Repository:
        resolver = registry.resolver
        credentials: CredentialsSource | None = None
        if resolver.auth_stream:
            stream = self._taken(where, resolver.auth_stream, stack)
            credentials = _Asker(stream, registry.reference)
        return self._transfers.repository(
            registry.reference, credentials, dict(resolver.headers), resolver.host_dir, resolver.default_scheme
        )

    @contextlib.asynccontextmanager
    async def _progress(self, where: Scope, id: str) -> AsyncIterator[Report]:
        """A report that goes out on stream ``id``, whole before the block is left."""
        if not id:
            yield lambda _event: None
            return
        stream = self._streams.get(where, id)
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        sending = asyncio.create_task(_send(stream, queue))
        try:
            yield queue.put_nowait
        finally:
            queue.put_nowait(None)
            try:
                await sending
            finally:
                sending.cancel()
                stream.close()


async def _send(stream: Stream, queue: asyncio.Queue[Event | None]) -> None:
    """Events until None; a client that stopped listening does not stop the transfer."""
    with contextlib.suppress(GantryError):
        while (event := await queue.get()) is not None:
            await stream.send(progress_message(event))


class _Asker:
    """Asks the client on its stream who it is; one question at a time."""

    def __init__(self, stream: Stream, reference: str) -> None:
        self._stream = stream
        self._reference = reference
        self._lock = asyncio.Lock()

    async def __call__(self, host: str, challenges: Sequence[str]) -> Credentials | None:
        async with self._lock:
            request = types.AuthRequest(host=host, reference=self._reference, wwwauthenticate=challenges)
            await self._stream.send(request)
            answer = await self._stream.receive(types.AuthResponse)
        return None if answer is None else _credentials(answer)


def _credentials(answer: types.AuthResponse) -> Credentials | None:
    if answer.authType == types.CREDENTIALS:
        return Credentials(answer.username, answer.secret)
    if answer.authType == types.REFRESH:
        return Credentials(identity_token=answer.secret)
    if answer.authType == types.HEADER:
        return Credentials(header=answer.secret)
    return None


def progress_message(event: Event) -> types.Progress:
    """``event`` as containerd's message."""
    message = types.Progress(event=event.event, name=event.name, progress=event.progress, total=event.total)
    if event.blob is not None:
        message.desc.CopyFrom(_descriptor(event.blob))
    return message


def _descriptor(blob: Descriptor) -> types_pb2.Descriptor:
    return types_pb2.Descriptor(
        media_type=blob.media_type, digest=blob.digest, size=blob.size, annotations=blob.annotations
    )


def _end(message: AnyMessage) -> Message | None:
    kind = _KINDS.get(message.type_url.rpartition("/")[2])
    if kind is None:
        raise Unimplemented(f"transfers of {message.type_url or 'nothing'} are not supported")
    return unpack(message, kind)


def _name(message: Message | None) -> str:
    return message.DESCRIPTOR.name if message is not None else "nothing"


def _platform(message: types_pb2.Platform) -> Platform:
    return Platform(message.architecture, message.os, message.os_version, variant=message.variant)


def _platforms(messages: Any) -> list[Platform]:
    return [_platform(message) for message in messages]


def _destination(store: types.ImageStore) -> Destination:
    unpacks = [
        Unpack(_platform(one.platform) if one.HasField("platform") else None, one.snapshotter) for one in store.unpacks
    ]
    extra = [
        ExtraName(one.name, one.is_prefix, one.allow_overwrite, one.add_digest, one.skip_named_digest)
        for one in store.extra_references
    ]
    return Destination(store.name, dict(store.labels), _platforms(store.platforms), unpacks, extra)
