"""The ttrpc server at ``<address>.ttrpc``: shims forward their events here, and clients of our own make calls.

Rule: an event is acknowledged when the exchange has taken it and not before; one that a shim sends again because the
acknowledgement was lost is acknowledged again and published once. Calls are ``services.calls``' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

import structlog
from google.protobuf.message import DecodeError

from containerd_py.exchange import LocalExchange
from containerd_py.services.calls import Calls
from oci import errors
from protos import ttrpc
from protos.containerd import shim_events_pb2

SERVICE = "containerd.services.events.ttrpc.v1.Events"

_log = structlog.get_logger("containerd_py.tasks.shim_events")


class Connection(asyncio.Protocol):
    """One peer's connection: a shim's, or a client's."""

    def __init__(self, exchange: LocalExchange, calls: Calls, connections: set[Connection]) -> None:
        self._exchange = exchange
        self._calls = calls
        self._connections = connections
        self._decoder = ttrpc.Decoder()
        self._transport: asyncio.Transport | None = None
        self._jobs: dict[int, asyncio.Task[None]] = {}
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        self._writable.set()
        for job in tuple(self._jobs.values()):
            job.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def send(self, data: bytes) -> None:
        """See ``services.calls.Wire``."""
        if self._transport is not None:
            self._transport.write(data)

    async def drained(self) -> None:
        """See ``services.calls.Wire``."""
        if not self._writable.is_set():
            await self._writable.wait()

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                if frame.kind == ttrpc.REQUEST:
                    self._answer(frame)
                elif frame.flags & ttrpc.REMOTE_CLOSED and (job := self._jobs.get(frame.stream_id)) is not None:
                    job.cancel()
        except ttrpc.ProtocolError as error:
            _log.warning("a shim broke the ttrpc protocol", error=str(error))
            self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _answer(self, frame: ttrpc.Frame) -> None:
        request = ttrpc.decode_request(frame)
        if request.service != SERVICE or request.method != "Forward":
            job = asyncio.get_running_loop().create_task(self._calls.serve(self, frame.stream_id, request))
            self._jobs[frame.stream_id] = job
            job.add_done_callback(lambda _: self._jobs.pop(frame.stream_id, None))
            return
        try:
            self._forward(request.payload)
        except errors.GantryError as error:
            answer = ttrpc.encode_error(frame.stream_id, error.code, str(error))
        else:
            answer = ttrpc.encode_response(frame.stream_id, b"")
        self.send(answer)

    def _forward(self, payload: bytes) -> None:
        try:
            envelope = shim_events_pb2.ForwardRequest.FromString(payload).envelope
        except DecodeError as error:
            raise errors.InvalidArgument(f"malformed ForwardRequest: {error}") from None
        if not envelope.HasField("timestamp"):
            envelope.timestamp.FromNanoseconds(time.time_ns())
        self._exchange.forward(envelope)


async def serve(path: str, exchange: LocalExchange, calls: Calls) -> Callable[[], None]:
    """Listen on the socket ``path`` (a stale one is removed). Returns what ends the service."""
    connections: set[Connection] = set()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: Connection(exchange, calls, connections), path, backlog=1024)
    os.chmod(path, 0o600)

    def close() -> None:
        server.close()
        for connection in tuple(connections):
            connection.close()

    return close
