"""Answers of two engines, made comparable: ids, times, addresses and sizes are masked, the rest stays.

Rule: a mask keeps the kind of a value (an id is an id on both sides), so that a wrong shape still shows.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.differential.requests import Step

_MASKS = (
    (re.compile(r"sha256:[0-9a-f]{64}"), "<digest>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "<short id>"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"), "<time>"),
    (re.compile(r"\b1(72|92)\.\d+\.\d+\.\d+\b"), "<address>"),
    (re.compile(r"02:42(:[0-9a-f]{2}){4}"), "<mac>"),
    (re.compile(r"Less than a second|\b\d+ seconds?\b"), "<seconds>"),
    (re.compile(r"/tmp/gantry-host-[^/\"]+"), "<host>"),
)
_NUMBERS = frozenset({"Created", "Pid", "Size", "VirtualSize", "SizeRw", "SizeRootFs", "LayersSize", "SpaceReclaimed"})
HEADERS = ("Content-Type", "Api-Version", "Docker-Experimental", "Ostype", "Cache-Control", "Pragma", "Swarm")


class Reply(NamedTuple):
    """What is compared: the body is decoded JSON or text."""

    status: int
    headers: dict[str, str]
    body: Any


class Client:
    """One engine's socket, spoken to at one API version; keeps the ids that steps save."""

    def __init__(self, socket_path: str, version: tuple[int, int] = (1, 41)) -> None:
        self._path = socket_path
        self._version = f"v{version[0]}.{version[1]}"
        self.saved: dict[str, str] = {}

    def ask(self, step: Step) -> Reply:
        """Send one request and read the whole answer."""
        connection = http.client.HTTPConnection("engine", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(self._path)
        body = None if step.body is None else json.dumps(step.body)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        where = step.path
        for name, value in dict(self.saved).items():
            where = where.replace("{" + name + "}", value)
        connection.request(step.method, f"/{self._version}{quote(where, safe='/?&=%')}", body, headers)
        answer = connection.getresponse()
        raw = answer.read()
        connection.close()
        try:
            decoded: Any = json.loads(raw)
        except ValueError:
            decoded = raw.decode(errors="replace")
        if step.save and isinstance(decoded, dict):
            self.saved[step.save] = str(decoded.get("Id", "?"))
        return Reply(answer.status, {name: answer.headers.get(name, "") for name in HEADERS}, decoded)

    def ask_all(self, steps: Iterable[Step]) -> list[tuple[Step, Reply]]:
        """Send all requests, each when the one before was answered; those that are ``late`` are not waited for."""
        with ThreadPoolExecutor() as pool:
            asked = [(step, pool.submit(self.ask, step) if step.late else self.ask(step)) for step in steps]
        return [(step, reply if isinstance(reply, Reply) else reply.result()) for step, reply in asked]


def masked(value: Any, key: str = "") -> Any:
    """``value`` with what must differ between two engines replaced."""
    if isinstance(value, dict):
        inside = key if key.endswith("stats") or key == "networks" else ""
        return {masked(k): masked(v, inside or k) for k, v in value.items()}
    if isinstance(value, list):
        items = [masked(v, key) for v in value]
        return sorted(items, key=json.dumps) if all(isinstance(item, dict) for item in items) else items
    if isinstance(value, str):
        for pattern, mask in _MASKS:
            value = pattern.sub(mask, value)
        return value
    number = isinstance(value, int) and not isinstance(value, bool)
    return "<number>" if number and (key in _NUMBERS or key.endswith("stats") or key == "networks") else value


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(JSON path, ours, theirs) wherever two masked values differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(key, "<absent>"), theirs.get(key, "<absent>"), f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for one, other in zip(ours, theirs, strict=True):
            yield from differences(one, other, f"{path}[]")
    elif ours != theirs:
        yield path, ours, theirs
