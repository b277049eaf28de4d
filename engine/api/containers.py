"""Container endpoints: life cycle, attach, wait, inspect, list, prune.

Rule: a handler only reads the request and shapes the answer; what is done and what is refused is in
``engine.containers``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from engine.containers import attaching, waiting
from engine.containers.config import decode_create
from engine.containers.inspecting import inspect_view
from engine.containers.listing import Listing
from engine.containers.machine import CREATING, ExitStatus, Machine
from engine.containers.service import ContainerService
from engine.containers.times import parse_time
from engine.http.errors import HttpError
from engine.http.messages import JSON, Answer, Duplex, Hijack, Request, Response, empty, json_response
from engine.http.router import Route
from engine.http.websocket import WebSocket, accept_headers
from engine.platforms import parse_platform
from oci.errors import InvalidArgument, NotFound

MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
RAW = "application/vnd.docker.raw-stream"
NOTHING = decode_create(b"{}")
FRAME_HEADER = 8
"""Bytes before each piece of output that say its stream and size."""


def routes(containers: ContainerService) -> list[Route]:
    """The endpoints of this module."""
    api = ContainersApi(containers)
    one = "/containers/{id}"
    return [
        Route("GET", "/containers/json", api.list),
        Route("POST", "/containers/create", api.create),
        Route("POST", "/containers/prune", api.prune),
        Route("GET", f"{one}/json", api.inspect),
        Route("POST", f"{one}/start", api.start),
        Route("POST", f"{one}/stop", api.stop),
        Route("POST", f"{one}/restart", api.restart),
        Route("POST", f"{one}/kill", api.kill),
        Route("POST", f"{one}/pause", api.pause),
        Route("POST", f"{one}/unpause", api.unpause),
        Route("POST", f"{one}/rename", api.rename),
        Route("POST", f"{one}/update", api.update),
        Route("POST", f"{one}/resize", api.resize),
        Route("POST", f"{one}/attach", api.attach),
        Route("GET", f"{one}/attach/ws", api.attach_websocket),
        Route("POST", f"{one}/wait", api.wait),
        Route("DELETE", one, api.remove),
        Route("DELETE", f"{one}/{{link}}", api.unlink, "with link=1: the legacy link of that alias"),
    ]


class ContainersApi:
    """Handlers."""

    def __init__(self, containers: ContainerService) -> None:
        self._containers = containers

    def _machine(self, request: Request) -> Machine:
        machine = self._containers.find(request.params["id"])
        if machine.doc.state.status == CREATING:
            raise NotFound(f"No such container: {request.params['id']}")
        return machine

    async def create(self, request: Request) -> Answer:
        """``POST /containers/create``."""
        raw = await request.body()
        if not raw.strip():
            raise InvalidArgument("invalid JSON: got EOF while reading request body")
        body = decode_create(raw)
        if body == NOTHING:
            raise InvalidArgument("config cannot be empty in order to create a container")
        platform = parse_platform(text) if (text := request.text("platform")) else None
        machine, warnings = await self._containers.maker.create(request.text("name"), body, platform)
        return json_response({"Id": machine.id, "Warnings": warnings}, 201)

    async def start(self, request: Request) -> Answer:
        """``POST /containers/{id}/start``."""
        machine = self._machine(request)
        if not await self._shielded(self._containers.start(machine)):
            raise HttpError(304)
        return empty()

    @staticmethod
    async def _shielded(work: Any) -> Any:
        """What was begun on a container is done to its end, even when the client goes away meanwhile."""
        return await asyncio.shield(asyncio.ensure_future(work))

    async def stop(self, request: Request) -> Answer:
        """``POST /containers/{id}/stop``."""
        machine = self._machine(request)
        done = await self._containers.stopper.stop(machine, request.text("signal"), request.number("t"))
        if not done:
            raise HttpError(304)
        return empty()

    async def restart(self, request: Request) -> Answer:
        """``POST /containers/{id}/restart``."""
        machine = self._machine(request)
        await self._shielded(self._containers.restart(machine, request.text("signal"), request.number("t")))
        return empty()

    async def kill(self, request: Request) -> Answer:
        """``POST /containers/{id}/kill``."""
        await self._containers.stopper.kill(self._machine(request), request.text("signal"))
        return empty()

    async def pause(self, request: Request) -> Answer:
        """``POST /containers/{id}/pause``."""
        await self._shielded(self._containers.stopper.pause(self._machine(request)))
        return empty()

    async def unpause(self, request: Request) -> Answer:
        """``POST /containers/{id}/unpause``."""
        await self._shielded(self._containers.stopper.unpause(self._machine(request)))
        return empty()

    async def rename(self, request: Request) -> Answer:
        """``POST /containers/{id}/rename``."""
        await self._containers.changer.rename(self._machine(request), request.text("name"))
        return empty()

    async def update(self, request: Request) -> Answer:
        """``POST /containers/{id}/update``."""
        body = await request.json(dict[str, Any])
        warnings = await self._containers.changer.update(self._machine(request), body)
        return json_response({"Warnings": warnings or None})

    async def resize(self, request: Request) -> Answer:
        """``POST /containers/{id}/resize``."""
        height, width = request.number("h"), request.number("w")
        if height is None or width is None:
            raise InvalidArgument("invalid resize: both h and w are needed")
        await self._containers.stopper.resize(self._machine(request), height, width)
        return Response(200)

    async def attach(self, request: Request) -> Answer:
        """``POST /containers/{id}/attach``: the connection becomes the container's stdio."""
        machine, relay = self._relay(request)

        async def run(duplex: Duplex) -> None:
            await relay.serve(duplex)

        framed = not machine.doc.config.tty and request.api_version >= (1, 42)
        return Hijack(run, MULTIPLEXED if framed else RAW)

    async def attach_websocket(self, request: Request) -> Answer:
        """``GET /containers/{id}/attach/ws``: the same in WebSocket messages, both outputs as one stream."""
        headers = accept_headers(request.headers)
        machine, relay = self._relay(request)

        async def run(duplex: Duplex) -> None:
            socket = WebSocket(duplex, skip=0 if machine.doc.config.tty else FRAME_HEADER)
            try:
                await relay.serve(socket)
            finally:
                await socket.close()

        return Hijack(run, RAW, headers)

    def _relay(self, request: Request) -> tuple[Machine, attaching.Relay]:
        machine = self._machine(request)
        attaching.check(machine)
        options = attaching.AttachOptions(
            stdin=request.flag("stdin") and machine.doc.config.open_stdin,
            stdout=request.flag("stdout"),
            stderr=request.flag("stderr"),
            stream=request.flag("stream"),
            logs=request.flag("logs"),
            detach_keys=request.text("detachKeys"),
        )
        relay = attaching.Relay(self._containers, machine, options)
        self._containers.publish(machine, "attach")
        return machine, relay

    async def wait(self, request: Request) -> Answer:
        """``POST /containers/{id}/wait``: headers at once, the status when the condition holds."""
        future = waiting.waiter(self._machine(request), request.text("condition"))
        return Response(200, _exit_line(future), {"Content-Type": JSON})

    async def remove(self, request: Request) -> Answer:
        """``DELETE /containers/{id}``."""
        machine = self._containers.find(request.params["id"])
        if request.flag("link"):
            raise InvalidArgument("invalid link: a container and its link's alias are needed, as in web/db")
        work = self._containers.remover.remove(machine, force=request.flag("force"), volumes=request.flag("v"))
        await self._shielded(work)
        return empty()

    async def unlink(self, request: Request) -> Answer:
        """``DELETE /containers/{id}/{alias}?link=1``."""
        if not request.flag("link"):
            raise NotFound(f"No such container: {request.params['id']}/{request.params['link']}")
        await self._containers.changer.unlink(self._machine(request), request.params["link"])
        return empty()

    async def inspect(self, request: Request) -> Answer:
        """``GET /containers/{id}/json``."""
        machine = self._machine(request)
        view = inspect_view(self._containers, machine)
        if request.flag("size"):
            view["SizeRw"], view["SizeRootFs"] = await self._containers.sizes.of(machine.doc)
        return json_response(view)

    async def list(self, request: Request) -> Answer:
        """``GET /containers/json``."""
        listing = self._containers.listing
        limit = request.number("limit", 0) or 0
        machines = await listing.select(request.filters(), all=request.flag("all"), limit=limit)
        return json_response([await self._summary(listing, machine, request.flag("size")) for machine in machines])

    async def _summary(self, listing: Listing, machine: Machine, size: bool) -> dict[str, Any] | msgspec.Raw:
        if not size:
            return listing.entry(machine)
        view = listing.summary(machine)
        view["SizeRw"], view["SizeRootFs"] = await self._containers.sizes.of(machine.doc)
        return view

    async def prune(self, request: Request) -> Answer:
        """``POST /containers/prune``."""
        filters = request.filters()
        unknown = sorted(set(filters) - {"label", "label!", "until"})
        if unknown:
            raise InvalidArgument(f"invalid filter '{unknown[0]}'")
        until = parse_time(filters["until"][-1], "until") if filters.get("until") else None
        gone, reclaimed = await self._shielded(self._containers.remover.prune(filters, until))
        return json_response({"ContainersDeleted": gone or None, "SpaceReclaimed": reclaimed})


async def _exit_line(future: asyncio.Future[ExitStatus]) -> AsyncIterator[bytes]:
    yield b""
    try:
        status = await future
    finally:
        future.cancel()
    answer: dict[str, Any] = {"StatusCode": status.code}
    if status.error:
        answer["Error"] = {"Message": status.error}
    yield msgspec.json.encode(answer) + b"\n"
