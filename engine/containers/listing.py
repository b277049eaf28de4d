"""``GET /containers/json``: which containers, and a line of each.

Rule: filters of one key are alternatives, keys must all hold; an unknown key is refused. Source: Docker Engine API
(``ContainerList``).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from engine.containers.inspecting import mount_view
from engine.containers.launch import sandbox_request
from engine.containers.machine import CREATING, Machine
from engine.containers.model import Container
from engine.containers.registry import Registry
from engine.containers.removal import has_label
from engine.containers.times import human_duration
from oci.errors import GantryError, InvalidArgument, NotFound

STATUSES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
HEALTHS = ("none", "starting", "healthy", "unhealthy")
SECOND = 1_000_000_000
KEYS = frozenset(
    {
        *("ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "label!"),
        *("name", "network", "publish", "since", "status", "volume"),
    }
)
Test = Callable[[Machine], bool]


class _Listed(NamedTuple):
    """An entry without its status, and the objects that it was made of."""

    made_of: tuple[object, ...]
    before: bytes
    after: bytes


def status_text(machine: Machine) -> str:
    """``Status``: "Up 5 minutes (healthy)", "Exited (0) 2 hours ago" …"""
    state = machine.doc.state
    now = time.time_ns()
    up = human_duration((now - state.started_at) / SECOND)
    ago = f"{human_duration((now - state.finished_at) / SECOND)} ago"
    if state.status == "paused":
        return f"Up {up} (Paused)"
    if state.status == "restarting":
        return f"Restarting ({state.exit_code}) {ago}"
    if state.status == "running":
        health = health_of(machine)
        return f"Up {up}" if health == "none" else f"Up {up} ({'health: starting' if health == 'starting' else health})"
    if state.status == "removing":
        return "Removal In Progress"
    if state.status == "dead":
        return "Dead"
    return f"Exited ({state.exit_code}) {ago}" if state.started_at and state.finished_at else "Created"


def health_of(machine: Machine) -> str:
    """``none``, ``starting``, ``healthy`` or ``unhealthy``."""
    return str((machine.health or {}).get("Status", "none"))


def command_text(doc: Container) -> str:
    """``Command``: arguments with spaces in quotes."""
    return " ".join([doc.path, *(f"'{a}'" if " " in a else a for a in doc.args)])


class Listing:
    """Lists containers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def select(self, filters: dict[str, list[str]], *, all: bool, limit: int) -> list[Machine]:
        """The machines that match, newest first. Raises ``InvalidArgument`` for a filter that makes no sense."""
        tests = [await self._test(key, values) for key, values in filters.items() if values]
        all = all or "status" in filters or limit > 0
        machines = sorted(self._registry.machines.values(), key=lambda m: m.doc.created_at, reverse=True)
        found = [m for m in machines if (all or m.doc.state.running) and m.doc.state.status != CREATING]
        found = [m for m in found if all_hold(tests, m)]
        return found[:limit] if limit > 0 else found

    async def _test(self, key: str, values: list[str]) -> Test:
        if key not in KEYS:
            raise InvalidArgument(f"invalid filter '{key}'")
        if key in ("before", "since"):
            return self._by_age(key, values)
        if key == "ancestor":
            return await self._by_image(values)
        if key in ("expose", "publish"):
            return self._by_port(key, values)
        simple = {
            "id": lambda m: any(m.id.startswith(v) or re.search(v, m.id) for v in values),
            "name": lambda m: any(re.search(v, m.doc.name) or re.search(v, f"/{m.doc.name}") for v in values),
            "label": lambda m: all(has_label(m.doc.config.labels or {}, v) for v in values),
            "label!": lambda m: not any(has_label(m.doc.config.labels or {}, v) for v in values),
            "health": lambda m: health_of(m) in values,
            "status": lambda m: m.doc.state.status in values,
            "is-task": lambda m: values[-1].lower() not in ("true", "1"),
            "isolation": lambda m: values[-1] in ("", "default"),
            "network": lambda m: bool(set(values) & self._networks(m)),
            "volume": lambda m: any(v in (p.name, p.destination, p.source) for p in m.doc.mounts for v in values),
            "exited": lambda m: (
                str(m.doc.state.exit_code) in values and not m.doc.state.running and m.doc.state.started_at > 0
            ),
        }
        _check_values(key, values)
        return simple[key]

    def _by_age(self, key: str, values: list[str]) -> Test:
        limits = [self._registry.find(value).doc.created_at for value in values]
        if key == "before":
            return lambda m: m.doc.created_at < min(limits)
        return lambda m: m.doc.created_at > max(limits)

    async def _by_image(self, values: list[str]) -> Test:
        ids: set[str] = set()
        for value in values:
            with contextlib.suppress(NotFound):
                ids.add((await self._registry.images.resolve(value)).id)
        return lambda m: m.doc.image_id in ids or m.doc.config.image in values

    def _by_port(self, key: str, values: list[str]) -> Test:
        wanted = {(int(first), protocol) for text in values for first, protocol in _ports(text)}

        def test(machine: Machine) -> bool:
            exposed, bound = machine.doc.config.exposed_ports or {}, machine.doc.host.port_bindings or {}
            keys = list(exposed if key == "expose" else bound)
            there = {(int(port), protocol or "tcp") for k in keys for port, _, protocol in [k.partition("/")]}
            if key == "publish":
                listed = self._registry.networks.port_list(machine.id, machine.doc.config.exposed_ports or ())
                there |= {(p["PrivatePort"], p["Type"]) for p in listed if "PublicPort" in p}
                there |= {(p["PublicPort"], p["Type"]) for p in listed if "PublicPort" in p}
            return bool(there & wanted)

        return test

    def _networks(self, machine: Machine) -> set[str]:
        networks = self._registry.networks.settings(sandbox_request(machine.doc)).get("Networks") or {}
        return {*networks, *(n.get("NetworkID", "") for n in networks.values())}

    def entry(self, machine: Machine) -> msgspec.Raw:
        """``summary`` as JSON. What time does not change in it is made once for each change of the container."""
        made_of = (machine.doc, *self._registry.networks.revision(machine.id))
        listed: _Listed | None = machine.listed
        if listed is None or listed.made_of[0] is not machine.doc or listed.made_of[1:] != made_of[1:]:
            view = self.summary(machine)
            before, after = dict[str, Any](), dict[str, Any]()
            for key, value in view.items():
                (after if "State" in before else before)[key] = value
            del after["Status"]
            listed = machine.listed = _Listed(made_of, msgspec.json.encode(before)[:-1], msgspec.json.encode(after)[1:])
        status = msgspec.json.encode(status_text(machine))
        return msgspec.Raw(b'%b,"Status":%b,%b' % (listed.before, status, listed.after))

    def summary(self, machine: Machine) -> dict[str, Any]:
        """One entry of the list, without sizes."""
        doc = machine.doc
        try:
            networks = self._registry.networks.settings(sandbox_request(doc)).get("Networks") or {}
        except GantryError:
            networks = {}
        host: dict[str, Any] = {"NetworkMode": doc.host.network_mode}
        if doc.host.annotations:
            host["Annotations"] = doc.host.annotations
        return {
            "Id": doc.id,
            "Names": [f"/{doc.name}"],
            "Image": doc.config.image,
            "ImageID": doc.image_id,
            "Command": command_text(doc),
            "Created": doc.created_at // SECOND,
            "Ports": self._ports(doc),
            "Labels": doc.config.labels or {},
            "State": doc.state.status,
            "Status": status_text(machine),
            "HostConfig": host,
            "NetworkSettings": {"Networks": networks},
            "Mounts": [mount_view(point) for point in doc.mounts],
            "ImageManifestDescriptor": msgspec.to_builtins(doc.image_manifest) if doc.image_manifest else None,
        }

    def _ports(self, doc: Container) -> list[dict[str, Any]]:
        if not doc.state.alive:
            return []
        ports = self._registry.networks.port_list(doc.id, doc.config.exposed_ports or ())
        return sorted(ports, key=lambda port: (port["PrivatePort"], port["Type"]))


def all_hold(tests: list[Test], machine: Machine) -> bool:
    """Whether every test holds."""
    return all(test(machine) for test in tests)


def _check_values(key: str, values: list[str]) -> None:
    for value in values:
        if key == "status" and value not in STATUSES:
            raise InvalidArgument(f"invalid filter 'status={value}'")
        if key == "health" and value not in HEALTHS:
            raise InvalidArgument(f"invalid filter 'health={value}'")
        if key == "exited" and not value.lstrip("-").isdecimal():
            raise InvalidArgument(f"invalid filter 'exited={value}'")
        if key in ("name", "id"):
            try:
                re.compile(value)
            except re.error as error:
                raise InvalidArgument(f"invalid filter '{key}={value}': {error}") from None


def _ports(text: str) -> list[tuple[int, str]]:
    ports, _, protocol = text.partition("/")
    first, _, last = ports.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise InvalidArgument(f"invalid port filter {text!r}")
    return [(port, protocol or "tcp") for port in range(int(first), int(last or first) + 1)]
