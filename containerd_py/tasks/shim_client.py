"""A ttrpc client on asyncio: one connection to a shim, any number of calls in flight.

Rule: the codec is ``protos.ttrpc``; here are only the socket and the table of waiting calls. When the connection ends,
``on_lost`` is called once, before any waiting call fails, so that a caller that sees ``ShimLost`` finds the recovery
already under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from oci import errors
from protos import ttrpc

M = TypeVar("M", bound=Message)

TASK_SERVICE = "containerd.task.v{version}.Task"
"""Versions 2 and 3 of the service have the same messages."""


class ShimLost(errors.Unavailable):
    """The connection to a shim ended before the answer; whether the call was carried out is not known."""


class ShimClient(asyncio.Protocol):
    """Calls of one service of a shim's, Task for the most part. Make it with ``connect``."""

    def __init__(self, namespace: str, address: str, version: int, service: str = "") -> None:
        self.address = address
        self.version = version
        self.on_lost: Callable[[], None] | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._service = service or TASK_SERVICE.format(version=version)
        self._metadata = {ttrpc.NAMESPACE_KEY: namespace}
        self._transport: asyncio.Transport | None = None
        self._decoder = ttrpc.Decoder()
        self._next_stream = 1
        self._calls: dict[int, asyncio.Future[ttrpc.Response]] = {}
        self._reason = ""

    @classmethod
    async def connect(cls, namespace: str, address: str, version: int = 2, service: str = "") -> ShimClient:
        """Connect to ``unix://PATH`` (or a plain path). Raises ``OSError``."""
        path = address.removeprefix("unix://")
        loop = asyncio.get_running_loop()
        _, client = await loop.create_unix_connection(lambda: cls(namespace, address, version, service), path)
        return client

    async def call(self, method: str, request: Message, answer: type[M], *, seconds: float | None = None) -> M:
        """The answer to ``method``. Raises the shim's error as ``oci.errors``, ``ShimLost``, ``DeadlineExceeded``."""
        if self._transport is None or self.closed.done():
            raise self._lost(method)
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        timeout = 0 if seconds is None else int(seconds * 1e9)
        frame = ttrpc.encode_request(
            stream, self._service, method, request.SerializeToString(), self._metadata, timeout
        )
        waiter: asyncio.Future[ttrpc.Response] = asyncio.get_running_loop().create_future()
        self._calls[stream] = waiter
        self._transport.write(frame)
        try:
            response = await (waiter if seconds is None else asyncio.wait_for(waiter, seconds))
        except TimeoutError:
            raise errors.DeadlineExceeded(f"shim at {self.address}: {method} took longer than {seconds:g} s") from None
        finally:
            self._calls.pop(stream, None)
        if response.code:
            raise errors.from_code(response.code, response.message)
        return answer.FromString(response.payload)

    def close(self) -> None:
        """Hang up without ``on_lost``. Idempotent."""
        self.on_lost = None
        if self._transport is not None:
            self._transport.abort()

    async def hung_up(self, seconds: float) -> bool:
        """Whether the shim closed the connection within ``seconds``."""
        await asyncio.wait((self.closed,), timeout=seconds)
        return self.closed.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                waiter = self._calls.get(frame.stream_id)
                if frame.kind == ttrpc.RESPONSE and waiter is not None and not waiter.done():
                    waiter.set_result(ttrpc.decode_response(frame))
        except ttrpc.ProtocolError as error:
            self._reason = f": {error}"
            if self._transport is not None:
                self._transport.abort()

    def eof_received(self) -> None:
        """Let the transport close: a shim that hung up answers no more."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if exc is not None and not self._reason:
            self._reason = f": {exc}"
        if not self.closed.done():
            self.closed.set_result(None)
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()
        for waiter in tuple(self._calls.values()):
            if not waiter.done():
                waiter.set_exception(self._lost("the call"))

    def _lost(self, method: str) -> ShimLost:
        return ShimLost(f"shim at {self.address} hung up before answering {method}{self._reason}")
