"""The services once more, over ttrpc on the socket where shims forward their events: for clients of our own.

Rule: the same servicers answer as over gRPC, with the same messages and errors; only the transport costs a tenth. What
is there is every method that is no stream of requests; an answer over ttrpc's 4 MiB is refused. Metadata keys are
gRPC's. A client says that it has gone from a call by a DATA frame with ``REMOTE_CLOSED``; the handler is cancelled
then, as it is when the connection ends. The first frame of a stream is empty (``NO_DATA``): it stands for the initial
metadata.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol, cast

from containerd_py.services.errors import Context
from containerd_py.services.rpcs import Rpc, rpcs_of
from oci import errors
from protos import ttrpc

LONGEST = ttrpc.MAX_DATA - 64
"""Bytes of an answer: what a frame takes, without the envelope."""


class Wire(Protocol):
    """What a connection offers to the calls it carries."""

    def send(self, data: bytes) -> None:
        """Queue bytes; those for a client that is gone are dropped."""

    async def drained(self) -> None:
        """Return when the client has taken what was queued, but for a little."""


class _CallContext:
    """What servicers use of ``grpc.aio.ServicerContext``."""

    __slots__ = ("_metadata", "_stream", "_wire")

    def __init__(self, wire: Wire, stream: int, metadata: Mapping[str, str]) -> None:
        self._wire = wire
        self._stream = stream
        self._metadata = tuple(metadata.items())

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    async def send_initial_metadata(self, _metadata: object) -> None:
        self._wire.send(ttrpc.encode_frame(ttrpc.Frame(self._stream, ttrpc.DATA, ttrpc.NO_DATA, b"")))


class Calls:
    """Every method of the servicers that were added. Nothing is answered before ``open``."""

    def __init__(self) -> None:
        self.servicers: list[object] = []
        self._rpcs: dict[tuple[str, str], Rpc] = {}
        self._opened = asyncio.Event()

    def open(self) -> None:
        """Answer from now on; calls that came before are answered now."""
        self._opened.set()

    def add(self, *servicers: object) -> None:
        """Answer what these serve."""
        self.servicers += servicers
        self._rpcs.update(((rpc.service, rpc.name), rpc) for servicer in servicers for rpc in rpcs_of(servicer))

    async def serve(self, wire: Wire, stream: int, request: ttrpc.Request) -> None:
        """Answer one call."""
        try:
            answer = await self._answer(wire, stream, request)
        except errors.GantryError as error:
            answer = ttrpc.encode_error(stream, error.code, str(error))
        wire.send(answer)

    async def _answer(self, wire: Wire, stream: int, request: ttrpc.Request) -> bytes:
        if not self._opened.is_set():
            await self._opened.wait()
        rpc = self._rpcs.get((request.service, request.method))
        if rpc is None or rpc.requests_stream:
            raise errors.Unimplemented(f"no method {request.method} of {request.service} here")
        message = rpc.decode(request.payload)
        context = cast(Context, _CallContext(wire, stream, request.metadata))
        if rpc.answers_stream:
            async for answer in rpc.call(message, context):
                payload = _bounded(rpc.encode(answer))
                wire.send(ttrpc.encode_frame(ttrpc.Frame(stream, ttrpc.DATA, 0, payload)))
                await wire.drained()
            return ttrpc.encode_response(stream, b"")
        return ttrpc.encode_response(stream, _bounded(rpc.encode(await rpc.call(message, context))))


def _bounded(payload: bytes) -> bytes:
    """``payload``; raises ``ResourceExhausted`` for one that ttrpc cannot carry."""
    if len(payload) > LONGEST:
        raise errors.ResourceExhausted(f"an answer of {len(payload)} bytes is too long for ttrpc", hint="ask over gRPC")
    return payload
