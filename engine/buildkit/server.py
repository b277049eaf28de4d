"""The gRPC server of BuildKit clients, on a private socket that hijacked connections are pumped to.

Rule: one server for all connections; a client that leaves takes its calls with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import grpc.aio

from engine.build.service import BuildService
from engine.buildkit.contents import ContentStores
from engine.buildkit.control import Control
from engine.buildkit.gateway import Bridge
from engine.buildkit.jobs import Jobs
from engine.buildkit.pump import PIECE, pump
from engine.buildkit.sessions import Sessions
from engine.http.messages import Duplex
from oci.image import Platform
from protos.buildkit import control_pb2_grpc, gateway_pb2_grpc, health_pb2, health_pb2_grpc

TRACES = "opentelemetry.proto.collector.trace.v1.TraceService"
OPTIONS = (
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", 32 << 20),
    ("grpc.so_reuseport", 0),
)


class GrpcServer:
    """Everything behind ``/grpc`` and ``/session``."""

    def __init__(self, builds: BuildService, directory: str, platform: Platform) -> None:
        self._path = f"{directory}/grpc"
        self.sessions = Sessions()
        self._contents = ContentStores(builds.spool)
        self._jobs = Jobs(builds, self.sessions, self._contents, directory)
        self._server = grpc.aio.server(options=OPTIONS)
        control = Control(builds, self._jobs, self.sessions, platform)
        builds.spares.append(self._contents.clear)
        # The generated stubs are those of blocking servers.
        add: Any = control_pb2_grpc.add_ControlServicer_to_server
        add(control, self._server)
        add = gateway_pb2_grpc.add_LLBBridgeServicer_to_server
        add(Bridge(self._jobs, platform), self._server)
        add = health_pb2_grpc.add_HealthServicer_to_server
        add(Health(), self._server)
        self._server.add_generic_rpc_handlers((traces(),))

    async def start(self) -> None:
        """Listen."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._server.add_insecure_port(f"unix:{self._path}")
        await self._server.start()

    async def serve(self, duplex: Duplex) -> None:
        """One connection, to its end."""
        reader, writer = await asyncio.open_unix_connection(self._path, limit=PIECE)
        await pump(duplex, reader, writer)

    async def close(self) -> None:
        """End every call."""
        await self._server.stop(0)
        self._contents.close()


class Health(health_pb2_grpc.HealthServicer):
    """Clients look whether the connection still carries calls."""

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def traces() -> Any:
    """Clients send the traces of what they do; nobody here reads them."""

    async def export(request: bytes, context: Any) -> bytes:
        del request, context
        return b""

    # An empty message is the answer to any.
    return grpc.method_handlers_generic_handler(TRACES, {"Export": grpc.unary_unary_rpc_method_handler(export)})
