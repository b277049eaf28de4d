"""``POST /grpc`` and ``POST /session``: connections of BuildKit clients.

Rule: nothing of gRPC's services is imported, and nothing listens, before the first such client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from engine.build.service import BuildService
from engine.http.messages import Answer, Duplex, Hijack, Request
from engine.http.router import Route
from oci.errors import InvalidArgument
from oci.hostpaths import HostPaths
from oci.image import Platform

if TYPE_CHECKING:
    from engine.buildkit.server import GrpcServer

UPGRADE = "h2c"
CONTENT_TYPE = "application/grpc"
SESSION = "x-docker-expose-session-"


class BuildKitFront:
    """The two endpoints; what stands behind them is made when they are first used."""

    def __init__(self, builds: BuildService, paths: HostPaths, platform: Platform) -> None:
        self._builds = builds
        self._directory = f"{paths.exec_root}/buildkit"
        self._platform = platform
        self._server: asyncio.Task[GrpcServer] | None = None

    def routes(self) -> list[Route]:
        """Every endpoint of this module."""
        return [
            Route("POST", "/grpc", self.grpc, "builds with the Dockerfile language; graphs (raw LLB) are refused"),
            Route("POST", "/session", self.session),
        ]

    async def grpc(self, request: Request) -> Answer:
        """``POST /grpc``: the client speaks HTTP/2 to our gRPC server."""
        _check(request)
        server = await self._started()
        return Hijack(server.serve, CONTENT_TYPE)

    async def session(self, request: Request) -> Answer:
        """``POST /session``: we speak HTTP/2 to the client's gRPC server."""
        _check(request)
        name = request.headers.get(f"{SESSION}uuid", "")
        if not name:
            raise InvalidArgument(f"a session without an id: the header {SESSION}uuid is missing")
        key = request.headers.get(f"{SESSION}sharedkey", "")
        server = await self._started()

        async def run(duplex: Duplex) -> None:
            await server.sessions.serve(name, key, duplex)

        return Hijack(run, CONTENT_TYPE)

    async def _started(self) -> GrpcServer:
        if self._server is None or (self._server.done() and self._server.exception() is not None):
            self._server = asyncio.create_task(self._start())
        return await asyncio.shield(self._server)

    async def _start(self) -> GrpcServer:
        from engine.buildkit.server import GrpcServer

        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)
        os.makedirs(self._directory, mode=0o700)
        server = GrpcServer(self._builds, self._directory, self._platform)
        await server.start()
        return server

    async def close(self) -> None:
        """End every build of a client and what serves them."""
        if self._server is not None:
            with contextlib.suppress(Exception):
                await (await self._server).close()
        if os.path.isdir(self._directory):  # also when it is left of an engine that was killed
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)


def _check(request: Request) -> None:
    if request.headers.get("upgrade", "").lower() != UPGRADE:
        raise InvalidArgument(f"{request.path} takes connections that are upgraded to {UPGRADE}")
