"""``GET /containers/{id}/stats`` and ``/top``."""

from __future__ import annotations

from engine.containers.service import ContainerService
from engine.containers.stats import Stats
from engine.containers.top import Top
from engine.http.messages import JSON, Answer, Request, Response, json_response
from engine.http.router import Route
from oci.errors import InvalidArgument


def routes(containers: ContainerService) -> list[Route]:
    """The endpoints of this module."""
    api = StatsApi(containers)
    return [
        Route("GET", "/containers/{id}/stats", api.stats),
        Route("GET", "/containers/{id}/top", api.top),
    ]


class StatsApi:
    """Handlers over ``Stats`` and ``Top``."""

    def __init__(self, containers: ContainerService) -> None:
        self._stats = Stats(containers)
        self._top = Top(containers)

    async def stats(self, request: Request) -> Answer:
        """A document a second; with ``stream=0`` one after two samples, with ``one-shot`` at once."""
        reference = request.params["id"]
        stream, one_shot = request.flag("stream", True), request.flag("one-shot")
        if stream and one_shot:
            raise InvalidArgument("cannot have stream=true and one-shot=true")
        if stream:
            return Response(200, self._stats.stream(reference), {"Content-Type": JSON})
        return Response(200, await self._stats.once(reference, one_shot=one_shot), {"Content-Type": JSON})

    async def top(self, request: Request) -> Answer:
        """``GET /containers/{id}/top``."""
        return json_response(await self._top.list(request.params["id"], request.text("ps_args")))
