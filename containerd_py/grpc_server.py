"""gRPC itself: the servicers on a unix socket, and on TCP where that was asked for.

Rule: nobody imports this module but ``containerd_py.door``, when somebody speaks gRPC: grpc takes 13 MB and some
threads. It is the one place where an error becomes a gRPC status.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

import grpc
import grpc.aio

from containerd_py.services.rpcs import Rpc, rpcs_of
from containerd_py.settings import Tcp
from containerd_py.tcp import add_port
from oci.errors import GantryError

OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.so_reuseport", 0),
)
STOP_GRACE = 0.5
"""Seconds calls in flight have at SIGTERM. A Wait may last for days, so this is what every stop costs."""

EARLY_OPTIONS = (*OPTIONS, ("grpc.max_connection_age_ms", 1000))
"""Whose bytes are passed on by ``containerd_py.door`` is asked to connect again after a second, for a straight way.

gRPC does that without a loss: what was begun on the connection goes on there, what is new takes another one.
"""

_STATUS = {status.value[0]: status for status in grpc.StatusCode}


async def serve(servicers: Sequence[object], path: str, early: str, tcp: Tcp) -> Callable[[], Awaitable[object]]:
    """Listen on the socket ``path``, on ``early`` and on ``tcp``. Returns the coroutine function that ends it.

    Raises ``FailedPrecondition`` when the TCP address cannot be had.
    """
    server, forerunner = _server(servicers, path, OPTIONS), _server(servicers, early, EARLY_OPTIONS)
    if tcp.address:
        add_port(server, tcp)
    await asyncio.gather(server.start(), forerunner.start())
    return lambda: asyncio.gather(server.stop(STOP_GRACE), forerunner.stop(STOP_GRACE))


def _server(servicers: Iterable[object], path: str, options: Sequence[tuple[str, int]]) -> grpc.aio.Server:
    server = grpc.aio.server(options=options)
    for servicer in servicers:
        add(server, servicer)
    server.add_insecure_port(f"unix:{path}")
    return server


def add(server: grpc.aio.Server, servicer: object) -> None:
    """Have ``server`` answer what ``servicer`` serves."""
    service, handlers = "", {}
    for rpc in rpcs_of(servicer):
        service, handlers[rpc.name] = rpc.service, _handler(rpc)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_registered_method_handlers(service, handlers)  # type: ignore[attr-defined]  # missing in the stubs


def _handler(rpc: Rpc) -> grpc.RpcMethodHandler[Any, Any]:
    kind = "_".join("stream" if stream else "unary" for stream in (rpc.requests_stream, rpc.answers_stream))
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    call = _stream(rpc.call) if inspect.isasyncgenfunction(rpc.call) else _unary(rpc.call)
    handler = make(call, request_deserializer=rpc.decode, response_serializer=rpc.encode)
    return cast("grpc.RpcMethodHandler[Any, Any]", handler)


def _unary(call: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await call(request, context)
        except GantryError as error:
            return await context.abort(_STATUS[int(error.code)], str(error))

    return answer


def _stream(call: Callable[..., Any]) -> Callable[..., Any]:
    async def answers(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for answer in call(request, context):
                yield answer
        except GantryError as error:
            await context.abort(_STATUS[int(error.code)], str(error))

    return answers
