"""``containerd.services.streaming.v1``: byte and message streams that a client opens beside a request.

Rule: a stream exists once its ``StreamInit`` was answered, is taken by one request by its id, and ends when that
request ends or the client goes. Archive bytes move under windows that the receiver grants.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from containerd_py.interfaces import Scope
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.rpcs import StreamingServicer
from oci.errors import AlreadyExists, Canceled, InvalidArgument, NotFound
from protos.containerd import streaming_pb2, transfer_types_pb2

M = TypeVar("M", bound=Message)

CHUNK = 256 << 10
"""Bytes in one Data message, where the client's window allows so many (containerd's clients grant 64 KiB)."""
WINDOW = 4 << 20


def pack(message: Message) -> AnyMessage:
    """``message`` as containerd packs it: the bare name as type URL."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def unpack(message: AnyMessage, kind: type[M]) -> M:
    """Raises ``InvalidArgument`` when ``message`` is something else."""
    if message.type_url.rpartition("/")[2] != kind.DESCRIPTOR.full_name:
        raise InvalidArgument(f"expected a {kind.DESCRIPTOR.full_name}, got {message.type_url!r}")
    try:
        return kind.FromString(message.value)
    except DecodeError as error:
        raise InvalidArgument(f"{kind.DESCRIPTOR.full_name} cannot be read: {error}") from error


class Stream:
    """The daemon's end of one stream."""

    def __init__(self, context: Context) -> None:
        import grpc.aio  # a stream comes in over gRPC: it is there

        self._context: Any = context
        self._gone = (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError)
        self._eof: Any = vars(grpc.aio)["EOF"]
        self._sending = asyncio.Lock()
        self.closed = asyncio.Event()

    async def send(self, message: Message) -> None:
        """Raises ``Canceled`` when the client is gone."""
        if self.closed.is_set():
            raise Canceled("the stream's client went away")
        async with self._sending:
            try:
                await self._context.write(pack(message))
            except self._gone as error:
                raise Canceled("the stream's client went away") from error

    async def receive(self, kind: type[M]) -> M | None:
        """The next message; None when the client ended its side. Raises ``Canceled`` when it went away."""
        reading = asyncio.ensure_future(self._context.read())
        ending = asyncio.ensure_future(self.closed.wait())
        try:
            await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise Canceled("the stream's client went away")
            message = reading.result()
        except self._gone as error:
            raise Canceled("the stream's client went away") from error
        finally:
            ending.cancel()
            reading.cancel()
        return None if message is self._eof else unpack(message, kind)

    async def download(self) -> AsyncIterator[bytes]:
        """The client's bytes until it ends its side."""
        await self.send(transfer_types_pb2.WindowUpdate(update=WINDOW))
        taken = 0
        while (message := await self.receive(transfer_types_pb2.Data)) is not None:
            yield message.data
            taken += len(message.data)
            if taken >= WINDOW // 2:
                await self.send(transfer_types_pb2.WindowUpdate(update=taken))
                taken = 0

    async def upload(self, pieces: AsyncIterator[bytes]) -> None:
        """Send ``pieces`` as far as the client's window lets us. Raises ``Canceled`` when it stops taking them."""
        window = 0
        async for piece in pieces:
            at = 0
            while at < len(piece):
                while window <= 0:
                    update = await self.receive(transfer_types_pb2.WindowUpdate)
                    if update is None:
                        raise Canceled("the client stopped reading the archive")
                    window += update.update
                part = piece[at : at + min(CHUNK, window)]
                await self.send(transfer_types_pb2.Data(data=part))
                window -= len(part)
                at += len(part)

    def close(self) -> None:
        """End the stream. Idempotent."""
        self.closed.set()


class Streams:
    """Open streams of all clients, by namespace and id."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Stream] = {}

    def add(self, scope: Scope, id: str, stream: Stream) -> None:
        """Raises ``AlreadyExists``."""
        if not id:
            raise InvalidArgument("stream id must not be empty")
        if (scope.namespace, id) in self._open:
            raise AlreadyExists(f"stream {id!r}: already exists")
        self._open[scope.namespace, id] = stream

    def get(self, scope: Scope, id: str) -> Stream:
        """Raises ``NotFound``."""
        stream = self._open.get((scope.namespace, id))
        if stream is None:
            raise NotFound(f"stream {id!r}: not found", hint="open it before the request that uses it")
        return stream

    def remove(self, scope: Scope, id: str) -> None:
        self._open.pop((scope.namespace, id), None)


@served(streaming_pb2.DESCRIPTOR.services_by_name["Streaming"])
class StreamingService(StreamingServicer):
    """Streams over gRPC."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def Stream(  # type: ignore[override]  # grpc takes a coroutine where the handler reads and writes by itself
        self, _requests: AsyncIterator[AnyMessage], context: Context
    ) -> None:
        """Keep one stream open until the request it is for is over."""
        stream, where = Stream(context), scope(context)
        init = await stream.receive(streaming_pb2.StreamInit)
        if init is None:
            raise InvalidArgument("a stream begins with a StreamInit")
        self._streams.add(where, init.id, stream)
        try:
            # The client may have this answer and use the stream before the write returns: others wait for its turn.
            await stream.send(Empty())
            await stream.closed.wait()
        finally:
            stream.close()
            with contextlib.suppress(KeyError):
                self._streams.remove(where, init.id)
