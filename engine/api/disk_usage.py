"""``GET /system/df``: what images, containers, volumes and the build cache take on disk.

Rule: only what was asked for is measured, the kinds side by side, and nothing else waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from engine.api.volumes import VolumesApi
from engine.build.service import BuildService
from engine.containers.service import ContainerService
from engine.http.messages import Answer, Request, json_response
from engine.http.router import Route
from engine.images.service import ImageService
from oci.errors import InvalidArgument

Json = dict[str, Any]
AT_ONCE = 8
"""Volumes and containers measured at the same time."""


class DiskUsageApi:
    """The handler."""

    def __init__(
        self, containers: ContainerService, images: ImageService, builds: BuildService, volumes: VolumesApi
    ) -> None:
        self._containers = containers
        self._images = images
        self._builds = builds
        self._volumes = volumes

    def routes(self) -> list[Route]:
        """The endpoint of this module."""
        return [Route("GET", "/system/df", self.usage)]

    async def usage(self, request: Request) -> Answer:
        """``GET /system/df``, of the kinds in ``type`` (all without it)."""
        kinds: dict[str, Callable[[Request], Awaitable[Json]]] = {
            "container": self._of_containers,
            "image": self._of_images,
            "volume": self._of_volumes,
            "build-cache": self._of_builds,
        }
        wanted = request.query.get("type") or list(kinds)
        unknown = sorted(set(wanted) - set(kinds))
        if unknown:
            raise InvalidArgument(f"unknown object type: {unknown[0]}", hint=f"known: {', '.join(sorted(kinds))}")
        answer: Json = {"LayersSize": 0, "Images": None, "Containers": None, "Volumes": None, "BuildCache": None}
        for part in await asyncio.gather(*(kinds[kind](request) for kind in dict.fromkeys(wanted))):
            answer |= part
        if request.api_version < (1, 42):
            answer["BuilderSize"] = sum(record["Size"] for record in answer["BuildCache"] or ())
        return json_response(answer)

    async def _of_images(self, request: Request) -> Json:
        size, images = await self._images.disk_usage(request.api_version)
        return {"LayersSize": size, "Images": images}

    async def _of_containers(self, request: Request) -> Json:
        listing = self._containers.listing
        turns = asyncio.Semaphore(AT_ONCE)

        async def entry(machine: Any) -> Json:
            async with turns:
                written, whole = await self._containers.sizes.of(machine.doc)
            return listing.summary(machine) | {"SizeRw": written, "SizeRootFs": whole}

        machines = await listing.select({}, all=True, limit=0)
        return {"Containers": await asyncio.gather(*(entry(machine) for machine in machines))}

    async def _of_volumes(self, request: Request) -> Json:
        volumes = self._containers.volumes
        turns = asyncio.Semaphore(AT_ONCE)

        async def entry(volume: Any) -> Json:
            async with turns:
                size, users = await volumes.usage(volume.name)
            return self._volumes.document(volume) | {"UsageData": {"Size": size, "RefCount": users}}

        return {"Volumes": await asyncio.gather(*(entry(volume) for volume in volumes.all()))}

    async def _of_builds(self, request: Request) -> Json:
        return {"BuildCache": self._builds.usage()}
