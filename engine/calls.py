"""The short way to a supervisor of our own: containerd's services over ttrpc, where it answers them.

Rule: a call here means and raises what the same call over gRPC does, at a tenth of the cost. Which calls go this way is
``Channel``'s decision, one by one: none before ``probe`` has found a supervisor that takes them, no streams of
requests, no streams of answers without a bound (ttrpc has no windows), no message that ttrpc cannot carry.

A supervisor that is being started again is waited for. What it was not told yet is said to the next one; what it may
have done before it died is asked again only where that changes nothing (``REPEATABLE``), else ``HungUp`` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from google.protobuf.empty_pb2 import Empty

from oci import errors
from protos import ttrpc
from protos.containerd import version_pb2

RETRY_SECONDS = 0.02
"""Between the tries of a call that waits for the supervisor to come back."""

RESTART_SECONDS = 20.0
"""How long a call waits for a supervisor that does not answer (``wait_for_ready``: for ever)."""

TRIES = 3
"""How many supervisors a call may outlive: the fourth death is more likely the call's doing than its bad luck."""

_READS = "Get Info List ListPids ListStatuses Metrics Mounts Plugins Server Stat Status Usage Version Wait"
_SETS = "Containers/Update Content/Update Images/Update Tasks/CloseIO Tasks/ResizePty Tasks/Update"
_MAKES = "Containers/Create Images/Create Leases/Create Snapshots/Prepare Tasks/Exec"
_REMOVES = "Containers/Delete Images/Delete Leases/Delete Snapshots/Remove Tasks/DeleteProcess"
REPEATABLE = frozenset(f"{_READS} {_SETS} {_MAKES} {_REMOVES}".split())
"""Methods (of every service, or of one) that may be called again when nobody can tell whether they were carried out.

They change nothing; or the same twice; or (create, delete) the second one finds what the first one did, which whoever
calls them takes for success.
"""

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


class Absent(errors.Unavailable):
    """No supervisor took the call in time: it was not carried out."""


def absent(address: str, why: str, seconds: float) -> Absent:
    """The error for a supervisor at ``address`` that was waited for ``seconds``."""
    return Absent(
        f"containerd at {address} cannot be reached: {why}, after {seconds:g} s of waiting for it",
        hint="the engine starts its own containerd-py again; its log says why it ended",
    )


class HungUp(errors.Unavailable):
    """The supervisor died while it had the call: nobody can tell whether it was carried out."""


def hung_up(path: str) -> HungUp:
    """The error for a call of ``/package.Service/Method``."""
    return HungUp(
        f"containerd ended before it answered {path.rpartition('.')[2]}: it is not known whether that was done",
        hint="look at the object before you ask for it again",
    )


class _NotTold(Exception):
    """The supervisor died before it had read the call."""


class _Connection(asyncio.Protocol):
    """One connection: calls and streams by number."""

    def __init__(self) -> None:
        self.lost = False
        self._left = False
        self._last = 0
        """The call whose request was the last thing sent; 0 when something else was."""
        self._decoder = ttrpc.Decoder()
        self._transport: asyncio.Transport | None = None
        self._next = 1
        self._calls: dict[int, tuple[str, asyncio.Future[ttrpc.Response]]] = {}
        self._streams: dict[int, asyncio.Queue[ttrpc.Frame | None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self._transport = True, None
        # Linux resets a unix socket whose peer closed it with bytes unread: the last request was among them.
        unread = self._last if isinstance(exc, ConnectionResetError) else 0
        for number, (path, waiter) in tuple(self._calls.items()):
            if not waiter.done():
                waiter.set_exception(_NotTold() if number == unread else self._ended(path))
        for queue in self._streams.values():
            queue.put_nowait(None)

    def _ended(self, path: str) -> errors.Unavailable:
        return errors.Unavailable(f"{path} was given up: the engine ends") if self._left else hung_up(path)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except ttrpc.ProtocolError:
            self._abort()

    def _take(self, frame: ttrpc.Frame) -> None:
        queue = self._streams.get(frame.stream_id)
        if queue is not None:
            queue.put_nowait(frame)
            return
        _, waiter = self._calls.get(frame.stream_id, ("", None))
        if waiter is not None and frame.kind == ttrpc.RESPONSE and not waiter.done():
            waiter.set_result(ttrpc.decode_response(frame))

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        self._left = True
        self._abort()

    def _send(self, path: str, payload: bytes, metadata: Metadata) -> int:
        if self._transport is None:
            raise _NotTold
        number, self._next = self._next, self._next + 2
        service, _, method = path[1:].partition("/")
        self._transport.write(ttrpc.encode_request(number, service, method, payload, dict(metadata)))
        if self._transport.is_closing():
            self.lost = True
            raise _NotTold  # nobody was there to write to
        self._last = number
        return number

    def _leave(self, number: int) -> None:
        """Tell the supervisor that nobody waits for the answer any more."""
        if self._transport is not None:
            self._last = 0
            flags = ttrpc.REMOTE_CLOSED | ttrpc.NO_DATA
            self._transport.write(ttrpc.encode_frame(ttrpc.Frame(number, ttrpc.DATA, flags, b"")))

    async def call(self, path: str, payload: bytes, metadata: Metadata) -> bytes:
        number = self._send(path, payload, metadata)
        waiter: asyncio.Future[ttrpc.Response] = asyncio.get_running_loop().create_future()
        self._calls[number] = path, waiter
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
            raise HungUp(f"containerd ended in the middle of {path.rpartition('.')[2]}")
        finally:
            del self._streams[number]
            self._leave(number)


def repeatable(path: str) -> bool:
    """Whether a call of ``/package.Service/Method`` may be made again after it may have been carried out."""
    method = path.rpartition("/")[2]
    return method in REPEATABLE or path.rpartition(".")[2] in REPEATABLE


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
            await self._connected(0)

    async def _connected(self, seconds: float | None) -> _Connection:
        """The connection; a supervisor that does not answer is waited for ``seconds`` (None: for ever)."""
        began = time.monotonic()
        while self._connection is None or self._connection.lost:
            try:
                if self._opening is None or self._opening.done():
                    self._opening = asyncio.get_running_loop().create_task(self._open())
                await asyncio.shield(self._opening)
            except errors.Unavailable as error:
                if seconds is not None and time.monotonic() - began >= seconds:
                    raise absent(self.path.removesuffix(".ttrpc"), error.message, seconds) from error
                await asyncio.sleep(RETRY_SECONDS)
        return self._connection

    async def _open(self) -> _Connection:
        try:
            _, connection = await asyncio.get_running_loop().create_unix_connection(_Connection, self.path)
        except OSError as error:
            raise errors.Unavailable(error.strerror or str(error)) from error
        try:
            answer = await connection.call(VERSION, Empty().SerializeToString(), ())
            version_pb2.VersionResponse.FromString(answer)
        except _NotTold as error:
            raise hung_up(VERSION) from error
        except errors.GantryError as error:
            connection.close()
            if not isinstance(error, errors.Unavailable):
                self.usable = False  # somebody else's containerd: it takes events there and nothing else
            raise
        self.usable, self._connection = True, connection
        return connection

    async def unary(self, path: str, payload: bytes, metadata: Metadata, seconds: float | None, wait: bool) -> bytes:
        """One call, within ``seconds``; ``wait``: for the supervisor for ever, not for ``RESTART_SECONDS``.

        Raises ``Unavailable`` where none came, ``HungUp`` where it died with the call, which is not ``REPEATABLE``.
        """
        patience = None if wait else RESTART_SECONDS
        try:
            async with asyncio.timeout(seconds):
                left = TRIES
                while True:
                    try:
                        return await (await self._connected(patience)).call(path, payload, metadata)
                    except _NotTold:
                        continue
                    except HungUp:
                        left -= 1
                        if not left or not repeatable(path):
                            raise
        except TimeoutError:
            raise errors.DeadlineExceeded(f"containerd did not answer {path} within {seconds:g} s") from None

    async def stream(self, path: str, payload: bytes, metadata: Metadata, wait: bool) -> Messages:
        """Answers as they come; see ``_Connection.stream``."""
        connection = await self._connected(None if wait else RESTART_SECONDS)
        try:
            async with contextlib.aclosing(connection.stream(path, payload, metadata)) as answers:
                async for answer in answers:
                    yield answer
        except _NotTold:
            raise hung_up(path) from None

    async def present(self) -> None:
        """Return when a supervisor answers; raises ``Unavailable`` when none did for ``RESTART_SECONDS``."""
        await self._connected(RESTART_SECONDS)

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

    def __init__(self, channel: Channel, path: str, encode: Callable[[Any], bytes], decode: Any, method: Any) -> None:
        self._channel, self._path, self._encode, self._decode, self._grpc = channel, path, encode, decode, method

    def __call__(
        self, request: Any, *, metadata: Metadata = (), timeout: float | None = None, wait_for_ready: bool = False
    ) -> Awaitable[Any]:
        if self._channel.calls.usable:
            payload = self._encode(request)
            if len(payload) <= LONGEST_REQUEST:
                return self._short(request, payload, (metadata, timeout, wait_for_ready))
        return self._long(request, (metadata, timeout, wait_for_ready))

    async def _long(self, request: Any, options: Options) -> Any:
        metadata, seconds, wait = options
        if not wait:
            await self._channel.ready(RESTART_SECONDS)
        return await self._grpc(request, metadata=metadata, timeout=seconds, wait_for_ready=wait)

    async def _short(self, request: Any, payload: bytes, options: Options) -> Any:
        try:
            return self._decode(await self._channel.calls.unary(self._path, payload, *options))
        except errors.ResourceExhausted:
            if self._path.rpartition("/")[2] not in UNBOUNDED:
                raise
            return await self._long(request, options)


class Channel:
    """A gRPC channel for stubs whose cheap calls take the short way."""

    def __init__(self, channel: Any, calls: Calls) -> None:
        """``channel`` is a ``engine.stubs.LazyChannel``."""
        self._channel = channel
        self.calls = calls
        self.ready: Callable[[float], Awaitable[None]] = channel.ready

    def unary_unary(self, path: str, **options: Any) -> Any:
        method = self._channel.unary_unary(path, **options)
        return Unary(self, path, options["request_serializer"], options["response_deserializer"], method)

    def unary_stream(self, path: str, **options: Any) -> Any:
        method = self._channel.unary_stream(path, **options)
        if path not in (EVENTS, READ):
            return method
        calls, encode, decode = self.calls, options["request_serializer"], options["response_deserializer"]

        def start(request: Any, *, metadata: Metadata = (), wait_for_ready: bool = False) -> Any:
            if not calls.usable or (path == READ and not 0 < request.size <= LONGEST_READ):
                return method(request, metadata=metadata, wait_for_ready=wait_for_ready)
            return Stream(calls.stream(path, encode(request), metadata, wait_for_ready), decode)

        return start

    def stream_unary(self, path: str, **options: Any) -> Any:
        return self._channel.stream_unary(path, **options)

    def stream_stream(self, path: str, **options: Any) -> Any:
        return self._channel.stream_stream(path, **options)
