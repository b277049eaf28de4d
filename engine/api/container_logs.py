"""``GET /containers/{id}/logs``."""

from __future__ import annotations

from engine.containers.logs import LogQuery, Logs
from engine.containers.service import ContainerService
from engine.containers.times import parse_time
from engine.http.messages import Answer, Request, Response
from engine.http.router import Route

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"


def routes(containers: ContainerService) -> list[Route]:
    """The endpoints of this module."""
    api = LogsApi(containers.logs)
    return [Route("GET", "/containers/{id}/logs", api.logs)]


class LogsApi:
    """Handlers over ``Logs``."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs

    async def logs(self, request: Request) -> Answer:
        """Lines of the log, framed unless the container has a terminal."""
        tail = request.text("tail", "all")
        query = LogQuery(
            stdout=request.flag("stdout"),
            stderr=request.flag("stderr"),
            follow=request.flag("follow"),
            since=parse_time(request.text("since"), "since"),
            until=parse_time(request.text("until"), "until"),
            tail=int(tail) if tail.isdecimal() else -1,
            timestamps=request.flag("timestamps"),
            details=request.flag("details"),
        )
        machine, stream = self._logs.open(request.params["id"], query)
        framed = not machine.doc.config.tty and request.api_version >= (1, 42)
        return Response(200, stream, {"Content-Type": MULTIPLEXED if framed else RAW})
