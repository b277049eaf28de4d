"""Stubs of containerd's services, made from the messages' own descriptions, and a gRPC channel that opens when used.

Rule: grpc is imported by the first call that nothing else can carry. It is 15 MB and a few threads, and an engine
whose supervisor is ours may never need it. (The generated ``…_pb2_grpc`` modules import it at once: only their types
are used here.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from engine.calls import absent

if TYPE_CHECKING:
    import grpc.aio

Metadata = Sequence[tuple[str, str]]


class Stub:
    """A service's methods as attributes, each with ``metadata`` as its default; a caller's own replaces it."""

    def __init__(self, service: ServiceDescriptor, channel: Any, metadata: Metadata) -> None:
        self._service, self._channel, self._metadata = service, channel, metadata

    def __getattr__(self, name: str) -> Any:
        method = self._service.methods_by_name.get(name)
        if method is None:
            raise AttributeError(f"{self._service.full_name} has no method {name!r}")
        call = partial(self._call(method), metadata=self._metadata)
        setattr(self, name, call)
        return call

    def _call(self, method: MethodDescriptor) -> Any:
        sides = ("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
        return getattr(self._channel, "_".join(sides))(
            f"/{self._service.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )


class LazyChannel:
    """What stubs use of ``grpc.aio.insecure_channel(target, options)``, which is made with the first call."""

    def __init__(self, target: str, options: Sequence[tuple[str, Any]]) -> None:
        self._target, self._options = target, options
        self._opened: grpc.aio.Channel | None = None

    def open(self) -> grpc.aio.Channel:
        """The channel itself."""
        if self._opened is None:
            import grpc.aio

            self._opened = grpc.aio.insecure_channel(self._target, options=self._options)
        return self._opened

    async def ready(self, seconds: float) -> None:
        """Return when the other side takes calls; raises ``Absent`` when it does not for ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self.open().channel_ready()
        except TimeoutError:
            raise absent(self._target.removeprefix("unix:"), "nobody answers", seconds) from None

    def _method(self, kind: str, path: str, options: dict[str, Any]) -> Callable[..., Any]:
        made: list[Any] = []

        def call(*arguments: Any, **named: Any) -> Any:
            if not made:
                made.append(getattr(self.open(), kind)(path, **options))
            return made[0](*arguments, **named)

        return call

    def unary_unary(self, path: str, **options: Any) -> Callable[..., Any]:
        return self._method("unary_unary", path, options)

    def unary_stream(self, path: str, **options: Any) -> Callable[..., Any]:
        return self._method("unary_stream", path, options)

    def stream_unary(self, path: str, **options: Any) -> Callable[..., Any]:
        return self._method("stream_unary", path, options)

    def stream_stream(self, path: str, **options: Any) -> Callable[..., Any]:
        return self._method("stream_stream", path, options)

    async def close(self) -> None:
        """End all calls."""
        if self._opened is not None:
            await self._opened.close(None)
