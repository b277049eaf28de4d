"""Endpoints on a container's files: archive (``docker cp``), export, changes (``docker diff``)."""

from __future__ import annotations

import asyncio

from engine.containers.archive import Archives
from engine.containers.changes import changes
from engine.containers.service import ContainerService
from engine.http.messages import Answer, Request, Response, json_response
from engine.http.router import Route
from oci.errors import InvalidArgument

TAR = "application/x-tar"
STAT_HEADER = "X-Docker-Container-Path-Stat"


def routes(containers: ContainerService) -> list[Route]:
    """The endpoints of this module."""
    api = FilesApi(containers)
    return [
        Route("HEAD", "/containers/{id}/archive", api.head),
        Route("GET", "/containers/{id}/archive", api.get),
        Route("PUT", "/containers/{id}/archive", api.put),
        Route("GET", "/containers/{id}/export", api.export),
        Route("GET", "/containers/{id}/changes", api.changes),
    ]


class FilesApi:
    """Handlers over ``Archives``."""

    def __init__(self, containers: ContainerService) -> None:
        self._containers = containers
        self._archives = Archives(containers)

    @staticmethod
    def _path(request: Request) -> str:
        path = request.text("path")
        if not path:
            raise InvalidArgument("bad parameter: path cannot be empty")
        return path

    async def head(self, request: Request) -> Answer:
        """``HEAD /containers/{id}/archive``."""
        header = await self._archives.stat(request.params["id"], self._path(request))
        return Response(200, b"", {STAT_HEADER: header})

    async def get(self, request: Request) -> Answer:
        """``GET /containers/{id}/archive``."""
        header, pieces = await self._archives.get(request.params["id"], self._path(request))
        return Response(200, pieces, {STAT_HEADER: header, "Content-Type": TAR})

    async def put(self, request: Request) -> Answer:
        """``PUT /containers/{id}/archive``."""
        await self._archives.put(
            request.params["id"],
            self._path(request),
            request.chunks,
            keep_kinds=request.flag("noOverwriteDirNonDir"),
            as_user=request.flag("copyUIDGID"),
        )
        return Response(200)

    async def export(self, request: Request) -> Answer:
        """``GET /containers/{id}/export``."""
        return Response(200, await self._archives.export(request.params["id"]), {"Content-Type": TAR})

    async def changes(self, request: Request) -> Answer:
        """``GET /containers/{id}/changes``."""
        machine = self._containers.find(request.params["id"])
        found = await asyncio.to_thread(changes, await self._containers.rootfs(machine))
        return json_response([{"Path": c.path, "Kind": c.kind} for c in found] or None)
