"""Exec endpoints: create, start (hijacked or detached), resize, inspect."""

from __future__ import annotations

import msgspec

from engine.containers.exec import ExecConfig, Execs
from engine.containers.service import ContainerService
from engine.http import gojson
from engine.http.messages import Answer, Duplex, Hijack, Request, Response, json_response
from engine.http.router import Route
from oci.errors import InvalidArgument

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"


class StartBody(msgspec.Struct, frozen=True, rename="pascal"):
    """The body of ``POST /exec/{id}/start``."""

    detach: bool = False
    tty: bool = False
    console_size: tuple[int, int] | None = None


def routes(containers: ContainerService) -> list[Route]:
    """The endpoints of this module."""
    api = ExecApi(containers.execs)
    return [
        Route("POST", "/containers/{id}/exec", api.create),
        Route("POST", "/exec/{id}/start", api.start),
        Route("POST", "/exec/{id}/resize", api.resize),
        Route("GET", "/exec/{id}/json", api.inspect),
    ]


class ExecApi:
    """Handlers over ``Execs``."""

    def __init__(self, execs: Execs) -> None:
        self._execs = execs

    async def create(self, request: Request) -> Answer:
        """``POST /containers/{id}/exec``."""
        config = await request.json(ExecConfig)
        return json_response({"Id": self._execs.create(request.params["id"], config).id}, 201)

    async def start(self, request: Request) -> Answer:
        """``POST /exec/{id}/start``: the connection becomes the process's stdio unless ``Detach`` was asked for."""
        raw = await request.body()
        try:
            body = gojson.decode(raw, StartBody) if raw.strip() else StartBody()
        except msgspec.DecodeError as error:
            raise InvalidArgument(f"invalid JSON in the body of {request.method} {request.path}: {error}") from None
        process = self._execs.startable(request.params["id"])
        if body.console_size is not None and not body.tty:
            raise InvalidArgument("console size is only supported when TTY is enabled")
        if body.detach:
            await self._execs.run_detached(process, body.console_size)
            return Response(200)
        # Claimed before the answer goes out: a second start must be refused.
        process.running = True

        # Whether output is framed is what the start says, whatever the process has (clients rely on it).
        framed = not body.tty

        async def run(duplex: Duplex) -> None:
            await self._execs.run_attached(process, duplex, body.console_size, framed=framed)

        return Hijack(run, MULTIPLEXED if framed and request.api_version >= (1, 42) else RAW)

    async def resize(self, request: Request) -> Answer:
        """``POST /exec/{id}/resize``."""
        height, width = request.number("h"), request.number("w")
        if height is None or width is None:
            raise InvalidArgument("invalid resize: both h and w are needed")
        await self._execs.resize(request.params["id"], height, width)
        return Response(200)

    async def inspect(self, request: Request) -> Answer:
        """``GET /exec/{id}/json``."""
        return json_response(self._execs.get(request.params["id"]).document())
