"""The short way to a supervisor of our own: containerd's services over ttrpc, where it answers them.

Rule: a call here means and raises what the same call over gRPC does, at a tenth of the cost. Which calls go this way is
``Channel``'s decision, one by one: none before ``probe`` has found a supervisor that takes them, no streams of
requests, no streams of answers without a bound (ttrpc has no windows), no message that ttrpc cannot carry.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from google.protobuf.empty_pb2 import Empty

from oci import errors
from protos import ttrpc
from protos.containerd import version_pb2

RETRY_SECONDS = 0.02
"""Between the tries of a call that waits for the supervisor to come back."""

LONGEST_REQUEST = 3 << 20
UNBOUNDED = frozenset({"List", "Metrics", "ListResources"})
"""Unary methods that change nothing and whose answers may be longer than ttrpc carries."""

LONGEST_READ = 1 << 20
EVENTS = "/containerd.services.events.v1.Events/Subscribe"
READ = "/containerd.services.content.v1.Content/Read"
VERSION = "/containerd.services.version.v1.Version/Version"

Metadata = Sequence[tuple[str, str]]
Options = tuple[Metadata, float | None, bool]
"""Metadata, seconds, whether to wait for the supervisor."""

Messages = AsyncGenerator[bytes | None, None]


class _Connection(asyncio.Protocol):
    """One connection: calls and streams by number."""

    def __init__(self) -> None:
        self.lost = False
        self._decoder = ttrpc.Decoder()
        self._transport: asyncio.Transport | None = None
        self._next = 1
        self._calls: dict[int, asyncio.Future[ttrpc.Response]] = {}
        self._streams: dict[int, asyncio.Queue[ttrpc.Frame | None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self._transport = True, None
        for waiter in tuple(self._calls.values()):
            if not waiter.done():
                waiter.set_exception(hung_up())
        for queue in self._streams.values():
            queue.put_nowait(None)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except ttrpc.ProtocolError:
            self.close()

    def _take(self, frame: ttrpc.Frame) -> None:
        queue = self._streams.get(frame.stream_id)
        if queue is not None:
            queue.put_nowait(frame)
            return
        waiter = self._calls.get(frame.stream_id)
        if waiter is not None and frame.kind == ttrpc.RESPONSE and not waiter.done():
            waiter.set_result(ttrpc.decode_response(frame))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _send(self, path: str, payload: bytes, metadata: Metadata) -> int:
        if self._transport is None:
            raise hung_up()
        number, self._next = self._next, self._next + 2
        service, _, method = path[1:].partition("/")
        self._transport.write(ttrpc.encode_request(number, service, method, payload, dict(metadata)))
        return number

    def _leave(self, number: int) -> None:
        """Tell the supervisor that nobody waits for the answer any more."""
        if self._transport is not None:
            flags = ttrpc.REMOTE_CLOSED | ttrpc.NO_DATA
            self._transport.write(ttrpc.encode_frame(ttrpc.Frame(number, ttrpc.DATA, flags, b"")))

    async def call(self, path: str, payload: bytes, metadata: Metadata) -> bytes:
        number = self._send(path, payload, metadata)
        waiter: asyncio.Future[ttrpc.Response] = asyncio.get_running_loop().create_future()
        self._calls[number] = waiter
        try:
            response = await waiter
        except asyncio.CancelledError:
            self._leave(number)
            raise
        finally:
            del self._calls[number]
        if response.code:
            raise errors.from_code(response.code, response.message)
        return response.payload

    async def stream(self, path: str, payload: bytes, metadata: Metadata) -> Messages:
        """The messages; None stands for the initial metadata."""
        number = self._send(path, payload, metadata)
        queue = self._streams[number] = asyncio.Queue()
        try:
            while (frame := await queue.get()) is not None:
                if frame.kind == ttrpc.RESPONSE:
                    response = ttrpc.decode_response(frame)
                    if response.code:
                        raise errors.from_code(response.code, response.message)
                    return
                yield None if frame.flags & ttrpc.NO_DATA else frame.data
            raise hung_up()
        finally:
            del self._streams[number]
            self._leave(number)


def hung_up() -> errors.Unavailable:
    """The supervisor went away before it answered."""
    return errors.Unavailable("containerd hung up before it answered")


class Calls:
    """The connection to ``path``, opened again when it was lost."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.usable = False
        """Whether a supervisor of ours answers there."""
        self._connection: _Connection | None = None
        self._opening: asyncio.Task[_Connection] | None = None

    async def probe(self) -> None:
        """Find out whether calls can be made here. Never raises."""
        with contextlib.suppress(errors.GantryError):
            await self._connected(wait=False)

    async def _connected(self, wait: bool) -> _Connection:
        while self._connection is None or self._connection.lost:
            try:
                if self._opening is None or self._opening.done():
                    self._opening = asyncio.get_running_loop().create_task(self._open())
                return await asyncio.shield(self._opening)
            except errors.Unavailable:
                if not wait:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
        return self._connection

    async def _open(self) -> _Connection:
        try:
            _, connection = await asyncio.get_running_loop().create_unix_connection(_Connection, self.path)
        except OSError as error:
            raise errors.Unavailable(f"containerd at {self.path} cannot be reached: {error}") from error
        try:
            answer = await connection.call(VERSION, Empty().SerializeToString(), ())
            version_pb2.VersionResponse.FromString(answer)
        except errors.GantryError as error:
            connection.close()
            if not isinstance(error, errors.Unavailable):
                self.usable = False  # somebody else's containerd: it takes events there and nothing else
            raise
        self.usable, self._connection = True, connection
        return connection

    async def unary(self, path: str, payload: bytes, metadata: Metadata, seconds: float | None, wait: bool) -> bytes:
        """One call, within ``seconds``; ``wait``: for the supervisor to come (back), instead of ``Unavailable``."""
        try:
            async with asyncio.timeout(seconds):
                return await (await self._connected(wait)).call(path, payload, metadata)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"containerd did not answer {path} within {seconds:g} s") from None

    async def stream(
        self, path: str, payload: bytes, metadata: Metadata, wait: bool
    ) -> AsyncGenerator[bytes | None, None]:
        """Answers as they come; see ``_Connection.stream``."""
        connection = await self._connected(wait)
        async with contextlib.aclosing(connection.stream(path, payload, metadata)) as answers:
            async for answer in answers:
                yield answer

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()


class Stream:
    """What the engine uses of a gRPC stream of answers."""

    def __init__(self, answers: Any, decode: Callable[[bytes], Any]) -> None:
        self._answers = answers
        self._decode = decode
        self._first: asyncio.Future[bytes | None] | None = None
        self._closing: asyncio.Future[None] | None = None

    async def initial_metadata(self) -> None:
        """Return when the supervisor has taken the request."""
        if self._first is None:
            self._first = asyncio.ensure_future(anext(self._answers, None))
        await asyncio.shield(self._first)

    async def __aiter__(self) -> AsyncIterator[Any]:
        await self.initial_metadata()
        assert self._first is not None
        first = self._first.result()  # a message where the service says nothing before its first one
        if first is not None:
            yield self._decode(first)
        async for answer in self._answers:
            if answer is not None:
                yield self._decode(answer)

    def cancel(self) -> None:
        """Leave the stream."""
        self._closing = asyncio.ensure_future(self._close())

    async def _close(self) -> None:
        if self._first is not None and not self._first.done():
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._answers.aclose()


class Unary:
    """A method as a stub calls it: over ttrpc where that can be, else over gRPC."""

    def __init__(self, calls: Calls, path: str, encode: Callable[[Any], bytes], decode: Any, grpc_method: Any) -> None:
        self._calls, self._path, self._encode, self._decode, self._grpc = calls, path, encode, decode, grpc_method

    def __call__(
        self, request: Any, *, metadata: Metadata = (), timeout: float | None = None, wait_for_ready: bool = False
    ) -> Awaitable[Any]:
        if self._calls.usable:
            payload = self._encode(request)
            if len(payload) <= LONGEST_REQUEST:
                return self._short(request, payload, (metadata, timeout, wait_for_ready))
        answer: Awaitable[Any] = self._grpc(request, metadata=metadata, timeout=timeout, wait_for_ready=wait_for_ready)
        return answer

    async def _short(self, request: Any, payload: bytes, options: Options) -> Any:
        metadata, seconds, wait = options
        try:
            return self._decode(await self._calls.unary(self._path, payload, metadata, seconds, wait))
        except errors.ResourceExhausted:
            if self._path.rpartition("/")[2] not in UNBOUNDED:
                raise
            return await self._grpc(request, metadata=metadata, timeout=seconds, wait_for_ready=wait)


class Channel:
    """A gRPC channel for stubs whose cheap calls take the short way."""

    def __init__(self, channel: Any, calls: Calls) -> None:
        self._channel = channel
        self._calls = calls

    def unary_unary(self, path: str, **options: Any) -> Any:
        method = self._channel.unary_unary(path, **options)
        return Unary(self._calls, path, options["request_serializer"], options["response_deserializer"], method)

    def unary_stream(self, path: str, **options: Any) -> Any:
        method = self._channel.unary_stream(path, **options)
        if path not in (EVENTS, READ):
            return method
        calls, encode, decode = self._calls, options["request_serializer"], options["response_deserializer"]

        def start(request: Any, *, metadata: Metadata = (), wait_for_ready: bool = False) -> Any:
            if not calls.usable or (path == READ and not 0 < request.size <= LONGEST_READ):
                return method(request, metadata=metadata, wait_for_ready=wait_for_ready)
            return Stream(calls.stream(path, encode(request), metadata, wait_for_ready), decode)

        return start

    def stream_unary(self, path: str, **options: Any) -> Any:
        return self._channel.stream_unary(path, **options)

    def stream_stream(self, path: str, **options: Any) -> Any:
        return self._channel.stream_stream(path, **options)
