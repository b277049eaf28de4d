"""Volume endpoints: list, create, inspect, delete, prune."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from engine.api.swarm import NOT_A_MANAGER
from engine.containers.machine import Machine
from engine.containers.service import ContainerService
from engine.containers.times import SECOND, rfc3339
from engine.containers.volumes import ANONYMOUS_LABEL, Volume, Volumes
from engine.http.errors import HttpError
from engine.http.messages import Answer, Request, empty, json_response
from engine.http.router import Route
from oci.errors import GantryError, InvalidArgument, NotFound

LIST_FILTERS = frozenset({"dangling", "driver", "label", "name"})
PRUNE_FILTERS = frozenset({"all", "label", "label!"})
_TRUE = frozenset({"1", "true", "t", "True", "TRUE", "T"})
_FALSE = frozenset({"0", "false", "f", "False", "FALSE", "F"})


class VolumesApi:
    """Handlers over ``Volumes``; volume events are published from here on."""

    def __init__(self, containers: ContainerService) -> None:
        self._volumes: Volumes = containers.volumes
        self._bus = containers.bus
        self._volumes.bind_events(lambda action, name, told: self._bus.publish("volume", action, name, told))
        containers.started.append(self._started)
        containers.ended.append(self._ended)
        self._jobs: set[asyncio.Task[None]] = set()

    def routes(self) -> list[Route]:
        """The endpoints of this class."""
        return [
            Route("GET", "/volumes", self.index),
            Route("POST", "/volumes/create", self.create),
            Route("POST", "/volumes/prune", self.prune),
            Route("GET", "/volumes/{name}", self.inspect),
            Route("PUT", "/volumes/{name}", self.update, "refused: only cluster volumes can be changed"),
            Route("DELETE", "/volumes/{name}", self.delete),
        ]

    def _started(self, machine: Machine) -> None:
        for point in machine.doc.mounts:
            if point.type == "volume":
                attributes = {
                    "container": machine.id,
                    "destination": point.destination,
                    "driver": "local",
                    "propagation": point.propagation,
                    "read/write": "true" if point.rw else "false",
                }
                self._bus.publish("volume", "mount", point.name, attributes)

    def _ended(self, machine: Machine) -> None:
        for point in machine.doc.mounts:
            if point.type == "volume":
                self._bus.publish("volume", "unmount", point.name, {"container": machine.id, "driver": "local"})
                task = asyncio.ensure_future(self._volumes.release(point.name, machine.id))
                self._jobs.add(task)
                task.add_done_callback(self._jobs.discard)

    def document(self, volume: Volume) -> dict[str, Any]:
        """A volume as Docker shows it."""
        return {
            "CreatedAt": rfc3339(volume.created_at // SECOND * SECOND),
            "Driver": "local",
            "Labels": volume.labels,
            "Mountpoint": self._volumes.path(volume.name),
            "Name": volume.name,
            "Options": volume.options or None,
            "Scope": "local",
        }

    async def index(self, request: Request) -> Answer:
        """``GET /volumes``."""
        filters = request.filters()
        _check_filters(filters, LIST_FILTERS)
        dangling = _boolean(filters, "dangling")
        found = [v for v in self._volumes.all() if self._wanted(v, filters, dangling)]
        return json_response({"Volumes": [self.document(v) for v in found], "Warnings": None})

    def _wanted(self, volume: Volume, filters: dict[str, list[str]], dangling: bool | None) -> bool:
        if dangling is not None and dangling == bool(self._volumes.users(volume.name)):
            return False
        if filters.get("driver") and "local" not in filters["driver"]:
            return False
        if filters.get("name") and not any(part in volume.name for part in filters["name"]):
            return False
        return all(_has_label(volume, wanted) for wanted in filters.get("label", ()))

    async def create(self, request: Request) -> Answer:
        """``POST /volumes/create``: also answers with a volume that is there already."""
        given = await request.json(CreateVolume)
        labels = given.labels if given.name else {**(given.labels or {}), ANONYMOUS_LABEL: ""}
        volume, _ = self._volumes.create(
            given.name, driver=given.driver, labels=labels, options=given.driver_opts or None
        )
        return json_response(self.document(volume), 201)

    async def inspect(self, request: Request) -> Answer:
        """``GET /volumes/{name}``."""
        return json_response(self.document(self._volumes.get(request.params["name"])))

    async def update(self, request: Request) -> Answer:
        """``PUT /volumes/{name}``: for cluster volumes, which need a swarm."""
        raise HttpError(503, NOT_A_MANAGER)

    async def delete(self, request: Request) -> Answer:
        """``DELETE /volumes/{name}``; with ``force`` a missing volume is no error."""
        try:
            await self._volumes.remove(request.params["name"])
        except NotFound:
            if not request.flag("force"):
                raise
        return empty()

    async def prune(self, request: Request) -> Answer:
        """``POST /volumes/prune``: unused anonymous volumes; named ones too with ``all`` or before API 1.42."""
        filters = request.filters()
        _check_filters(filters, PRUNE_FILTERS)
        everything = bool(_boolean(filters, "all")) or request.api_version < (1, 42)
        deleted, reclaimed = [], 0
        for volume in self._volumes.all():
            labelled = all(_has_label(volume, w) for w in filters.get("label", ()))
            excluded = any(_has_label(volume, w) for w in filters.get("label!", ()))
            if not (everything or volume.anonymous) or not labelled or excluded or self._volumes.users(volume.name):
                continue
            size, _ = await self._volumes.usage(volume.name)
            try:
                await self._volumes.remove(volume.name)
            except GantryError:
                # Somebody began to use it meanwhile.
                continue
            deleted.append(volume.name)
            reclaimed += size
        self._bus.publish("volume", "prune", "", {"reclaimed": str(reclaimed)})
        return json_response({"VolumesDeleted": deleted, "SpaceReclaimed": reclaimed})


class CreateVolume(msgspec.Struct, frozen=True, rename="pascal"):
    """The body of ``POST /volumes/create``."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None


def _check_filters(filters: dict[str, list[str]], known: frozenset[str]) -> None:
    for key in filters:
        if key not in known:
            raise InvalidArgument(f"invalid filter '{key}'")


def _boolean(filters: dict[str, list[str]], key: str) -> bool | None:
    values = filters.get(key)
    if not values:
        return None
    if values[-1] in _TRUE:
        return True
    if values[-1] in _FALSE:
        return False
    raise InvalidArgument(f"invalid filter '{key}={values}'")


def _has_label(volume: Volume, wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    labels = volume.labels or {}
    return name in labels and (not equals or labels[name] == value)
