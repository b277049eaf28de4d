"""Where shims forward their events: a ttrpc server at ``<address>.ttrpc``.

Rule: an event is acknowledged when the exchange has taken it and not before; one that a shim sends again because the
acknowledgement was lost is acknowledged again and published once.
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
from oci import errors
from protos import ttrpc
from protos.containerd import shim_events_pb2

SERVICE = "containerd.services.events.ttrpc.v1.Events"

_log = structlog.get_logger("containerd_py.tasks.shim_events")


class EventConnection(asyncio.Protocol):
    """One shim's connection."""

    def __init__(self, exchange: LocalExchange, connections: set[EventConnection]) -> None:
        self._exchange = exchange
        self._connections = connections
        self._decoder = ttrpc.Decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                if frame.kind == ttrpc.REQUEST:
                    self._answer(frame)
        except ttrpc.ProtocolError as error:
            _log.warning("a shim broke the ttrpc protocol", error=str(error))
            self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _answer(self, frame: ttrpc.Frame) -> None:
        request = ttrpc.decode_request(frame)
        try:
            if request.service != SERVICE or request.method != "Forward":
                raise errors.Unimplemented(f"no method {request.method} of {request.service} here")
            self._forward(request.payload)
        except errors.GantryError as error:
            answer = ttrpc.encode_error(frame.stream_id, error.code, str(error))
        else:
            answer = ttrpc.encode_response(frame.stream_id, b"")
        if self._transport is not None:
            self._transport.write(answer)

    def _forward(self, payload: bytes) -> None:
        try:
            envelope = shim_events_pb2.ForwardRequest.FromString(payload).envelope
        except DecodeError as error:
            raise errors.InvalidArgument(f"malformed ForwardRequest: {error}") from None
        if not envelope.HasField("timestamp"):
            envelope.timestamp.FromNanoseconds(time.time_ns())
        self._exchange.forward(envelope)


async def serve(path: str, exchange: LocalExchange) -> Callable[[], None]:
    """Listen on the socket ``path`` (a stale one is removed). Returns what ends the service."""
    connections: set[EventConnection] = set()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: EventConnection(exchange, connections), path, backlog=1024)
    os.chmod(path, 0o600)

    def close() -> None:
        server.close()
        for connection in tuple(connections):
            connection.close()

    return close
