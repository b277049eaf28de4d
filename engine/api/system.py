"""System endpoints: ping, version, info, events, and the two that only Gantry has (bootstrap lives with the images)."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import msgspec
from google.protobuf.empty_pb2 import Empty

from engine.backend import Backend, translated
from engine.config import Config
from engine.events import Event, EventBus
from engine.hostinfo import HostFacts
from engine.http.messages import JSON, Answer, Request, Response, empty, json_response
from engine.http.router import API_VERSION, MIN_API_VERSION, Route, version_text
from oci.errors import InvalidArgument
from oci.version import __version__

PING_HEADERS = {
    "Builder-Version": "2",
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
    "Swarm": "inactive",
}


class Counts(Protocol):
    """What info tells of the containers and images."""

    def counts(self) -> tuple[int, int, int]:
        """Numbers of running, paused and stopped containers."""


class SystemApi:
    """Handlers; ``image_count``, ``stop_engine`` and ``warnings`` are wired by ``engine.app``."""

    def __init__(
        self,
        config: Config,
        backend: Backend,
        bus: EventBus,
        containers: Counts,
        image_count: Callable[[], Awaitable[int]],
        stop_engine: Callable[[bool], Awaitable[None]],
        warnings: Callable[[], Awaitable[list[str]]],
    ) -> None:
        self._config = config
        self._backend = backend
        self._bus = bus
        self._containers = containers
        self._image_count = image_count
        self._stop_engine = stop_engine
        self._warnings = warnings
        self._facts = HostFacts.read()

    @property
    def engine_id(self) -> str:
        """``ID`` of info."""
        return str(self._facts.info()["ID"])

    def reconfigure(self, config: Config) -> None:
        """Tell of another configuration from now on."""
        self._config = config

    def routes(self) -> list[Route]:
        """The endpoints of this module."""
        return [
            Route("GET", "/_ping", self.ping),
            Route("HEAD", "/_ping", self.ping),
            Route("GET", "/version", self.version),
            Route("GET", "/info", self.info),
            Route("GET", "/events", self.events, "history of the last 256 events, kept in memory"),
            Route("POST", "/gantry/down", self.down, "Gantry's own: stops the engine and its supervisor"),
        ]

    async def ping(self, request: Request) -> Answer:
        """``OK`` and the headers that clients negotiate by."""
        body = b"" if request.method == "HEAD" else b"OK"
        return Response(200, body, {"Content-Type": "text/plain; charset=utf-8", **PING_HEADERS})

    async def version(self, request: Request) -> Answer:
        """``GET /version``."""
        with translated():
            supervisor = await self._backend.version.Version(Empty())
        facts = self._facts
        details = {
            "ApiVersion": version_text(API_VERSION),
            "Arch": facts.go_arch,
            "BuildTime": "",
            "Experimental": "false",
            "GitCommit": "",
            "GoVersion": f"python{platform.python_version()}",
            "KernelVersion": facts.kernel,
            "MinAPIVersion": version_text(MIN_API_VERSION),
            "Os": "linux",
        }
        components = [
            {"Name": "Engine", "Version": __version__, "Details": details},
            {"Name": "containerd", "Version": supervisor.version, "Details": {"GitCommit": supervisor.revision}},
            {"Name": "runc-py", "Version": __version__, "Details": {"GitCommit": ""}},
        ]
        return json_response(
            {
                "Platform": {"Name": "Gantry Engine"},
                "Components": components,
                "Version": __version__,
                "ApiVersion": details["ApiVersion"],
                "MinAPIVersion": details["MinAPIVersion"],
                "GitCommit": "",
                "GoVersion": details["GoVersion"],
                "Os": "linux",
                "Arch": facts.go_arch,
                "KernelVersion": facts.kernel,
                "BuildTime": "",
            }
        )

    async def info(self, request: Request) -> Answer:
        """``GET /info``."""
        running, paused, stopped = self._containers.counts()
        mirrors = list(self._config.registry_mirrors)
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"
        dynamic: dict[str, Any] = {
            "Containers": running + paused + stopped,
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": stopped,
            "Images": await self._image_count(),
            "DockerRootDir": self._config.paths.data_root,
            "Debug": self._config.debug,
            "SystemTime": stamp,
            "Warnings": await self._warnings() or None,
            "NFd": len(os.listdir("/proc/self/fd")),
            "NGoroutines": len(asyncio.all_tasks()),
            "NEventsListener": self._bus.listeners,
            "LoggingDriver": self._config.defaults.log_config.type,
            "Runtimes": self._config.defaults.installed(),
            "DefaultRuntime": self._config.defaults.runtime,
            "Labels": list(self._config.labels),
            "Containerd": {"Address": self._backend.address, "Namespaces": {"Containers": self._backend.namespace}},
            "RegistryConfig": {
                "InsecureRegistryCIDRs": ["127.0.0.0/8", "::1/128"],
                "IndexConfigs": {
                    "docker.io": {"Name": "docker.io", "Mirrors": mirrors, "Secure": True, "Official": True}
                }
                | {
                    host: {"Name": host, "Mirrors": [], "Secure": False, "Official": False}
                    for host in self._config.insecure_registries
                },
                "Mirrors": mirrors,
            },
        }
        # Clients of those days warn when they are told nothing.
        old = {"BridgeNfIptables": True, "BridgeNfIp6tables": True} if request.api_version < (1, 50) else {}
        if request.api_version < (1, 42):
            old |= {"KernelMemory": False, "KernelMemoryTCP": False}
        return json_response(self._facts.info() | dynamic | old)

    async def down(self, request: Request) -> Answer:
        """Stop the engine; ``keep=1`` leaves running containers and containerd-py as they are."""
        await self._stop_engine(request.flag("keep"))
        return empty()

    async def events(self, request: Request) -> Answer:
        """``GET /events``: one JSON object per event, from ``since`` to ``until`` or for ever."""
        since, until = _moment(request.text("since")), _moment(request.text("until"))
        accepts = EventFilter(request.filters())
        return Response(200, self._event_lines(since, until, accepts), {"Content-Type": JSON})

    async def _event_lines(self, since: int | None, until: int | None, accepts: EventFilter) -> AsyncIterator[bytes]:
        yield b""
        if until is not None and until <= time.time_ns():
            for event in self._bus.history(since or 0, until):
                if accepts(event):
                    yield encode_event(event)
            return
        stream = self._bus.subscribe(since)
        try:
            async with asyncio.timeout(None if until is None else (until - time.time_ns()) / 1e9):
                async for event in stream:
                    if accepts(event):
                        yield encode_event(event)
        except TimeoutError:
            return


def encode_event(event: Event) -> bytes:
    """One line of the event stream; the pre-1.22 keys ``status``, ``id`` and ``from`` only where Docker has them."""
    fields = {k: v for k, v in msgspec.to_builtins(event).items() if v is not None}
    return msgspec.json.encode(fields) + b"\n"


def _moment(text: str) -> int | None:
    """Unix seconds with an optional fraction (what clients send) in nanoseconds; raises ``InvalidArgument``."""
    if not text or text == "0":
        return None
    whole, _, fraction = text.partition(".")
    try:
        return int(whole) * 10**9 + int((fraction + "0" * 9)[:9])
    except ValueError:
        raise InvalidArgument(f"invalid timestamp {text!r}: seconds since the epoch expected") from None


class EventFilter:
    """Docker's event filters: values of one key are alternatives, keys must all hold."""

    KEYS = frozenset({"type", "event", "container", "image", "network", "volume", "daemon", "label", "scope"})

    def __init__(self, filters: dict[str, list[str]]) -> None:
        unknown = sorted(set(filters) - self.KEYS)
        if unknown:
            raise InvalidArgument(f"invalid filter {unknown[0]!r}")
        self._filters = filters

    def __call__(self, event: Event) -> bool:
        return all(any(self._one(event, key, value) for value in values) for key, values in self._filters.items())

    @staticmethod
    def _one(event: Event, key: str, value: str) -> bool:
        attributes = event.actor.attributes
        if key == "type":
            return event.type == value
        if key == "scope":
            return event.scope == value
        if key == "event":
            return event.action == value or event.action.partition(":")[0] == value
        if key == "label":
            name, equals, wanted = value.partition("=")
            return name in attributes and (not equals or attributes[name] == wanted)
        if key == "image":
            named = (
                event.actor.id if event.type == "image" else "",
                attributes.get("image", ""),
                attributes.get("name", ""),
            )
            return any(value in (n, n.partition(":")[0]) for n in named if n)
        if event.type != key:
            return False
        return event.actor.id.startswith(value) or attributes.get("name") == value
