"""The volume endpoints over a real store and real directories."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.api import volumes as api
from engine.containers.service import ContainerService
from engine.containers.volume_mounts import parse_flags
from engine.containers.volumes import Volumes
from engine.events import EventBus
from engine.http.messages import Request, Response
from engine.http.router import Router
from engine.store import Store
from oci.errors import FailedPrecondition, InvalidArgument, NotFound


class Api:
    """Calls handlers as the server does."""

    def __init__(self, tmp_path: Path) -> None:
        self.volumes = Volumes(Store(":memory:"), str(tmp_path / "volumes"))
        self.bus = EventBus()
        fake = SimpleNamespace(volumes=self.volumes, bus=self.bus, started=[], ended=[])
        self.router = Router(api.VolumesApi(cast(ContainerService, fake)).routes())

    def __call__(self, method: str, path: str, body: object = None, **query: str) -> tuple[int, Any]:
        route, params = self.router.find(method, path)

        async def chunks() -> AsyncIterator[bytes]:
            yield json.dumps(body).encode()

        request = Request(method, path, {k: [v] for k, v in query.items()}, {}, (1, 51), chunks(), params)
        answer = cast(Response, asyncio.run(cast(Any, route.handler(request))))
        assert isinstance(answer.body, bytes)
        return answer.status, json.loads(answer.body) if answer.body else None

    def events(self) -> list[tuple[str, str]]:
        return [(e.action, e.actor.id) for e in self.bus.history(0, 1 << 62)]


@pytest.fixture
def call(tmp_path: Path) -> Api:
    return Api(tmp_path)


def test_life(call: Api, tmp_path: Path) -> None:
    status, made = call("POST", "/volumes/create", {"Name": "data", "Labels": {"a": "b"}, "DriverOpts": None})
    assert status == 201
    path = str(tmp_path / "volumes/data/_data")
    assert (made["Name"], made["Mountpoint"], made["Labels"], made["Scope"]) == ("data", path, {"a": "b"}, "local")
    assert os.path.isdir(path)
    assert len(made["CreatedAt"]) == len("2026-01-01T00:00:00Z")
    assert call("POST", "/volumes/create", {"Name": "data"})[1]["Labels"] == {"a": "b"}
    assert call("GET", "/volumes/data") == (200, made)
    assert call("GET", "/volumes")[1] == {"Volumes": [made], "Warnings": None}
    assert call("DELETE", "/volumes/data") == (204, None)
    assert not os.path.exists(path)
    with pytest.raises(NotFound, match="get data: no such volume"):
        call("DELETE", "/volumes/data")
    assert call("DELETE", "/volumes/data", force="1")[0] == 204
    assert call.events() == [("create", "data"), ("destroy", "data")]


def test_filters_and_use(call: Api) -> None:
    call("POST", "/volumes/create", {"Name": "used", "Labels": {"k": "1"}})
    call("POST", "/volumes/create", {"Name": "free", "Labels": {"k": "2"}})
    call.volumes.bind_users(lambda name: ["c" * 64] if name == "used" else [])

    def names(**filters: list[str]) -> list[str]:
        return [v["Name"] for v in call("GET", "/volumes", filters=json.dumps(filters))[1]["Volumes"]]

    assert names(dangling=["true"]) == ["free"]
    assert names(dangling=["0"]) == ["used"]
    assert names(name=["re"]) == ["free"]
    assert names(label=["k=1"]) == ["used"]
    assert names(label=["k"]) == ["used", "free"]
    assert names(driver=["other"]) == []
    with pytest.raises(InvalidArgument, match="invalid filter 'colour'"):
        names(colour=["red"])
    with pytest.raises(FailedPrecondition, match="volume is in use - "):
        call("DELETE", "/volumes/used")


def test_prune_takes_anonymous_ones_first(call: Api, tmp_path: Path) -> None:
    call("POST", "/volumes/create", {"Name": "named"})
    anonymous, _ = call.volumes.create(labels={"com.docker.volume.anonymous": ""})
    Path(call.volumes.path(anonymous.name), "file").write_bytes(b"x" * 1000)
    os.link(f"{call.volumes.path(anonymous.name)}/file", f"{call.volumes.path(anonymous.name)}/link")
    assert call("POST", "/volumes/prune")[1] == {"VolumesDeleted": [anonymous.name], "SpaceReclaimed": 1000}
    assert call("POST", "/volumes/prune", filters='{"all":["1"]}')[1]["VolumesDeleted"] == ["named"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "1"}, 'create vol: invalid option: "size"'),
        ({"type": "tmpfs"}, 'create vol: missing required option: "device"'),
        ({"o": "ro", "device": "/x"}, 'create vol: missing required option: "type"'),
    ],
)
def test_options_are_checked(call: Api, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        call("POST", "/volumes/create", {"Name": "vol", "DriverOpts": options})
    assert call("GET", "/volumes")[1]["Volumes"] == []


def test_mount_flags() -> None:
    assert parse_flags("ro,noexec,size=1m,uid=5") == (1 | 8, "size=1m,uid=5")
    assert parse_flags("bind") == (4096, "")
    assert parse_flags("") == (0, "")
