"""ps, logs, start, stop, kill, rm, inspect."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from cli.engine import Parser, client
from cli.errors import ApiError, CommandFailed
from cli.http import Client
from cli.tables import age, table


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command of this module."""
    out = Parser(f"gantry {name}")
    add = out.add_argument
    if name == "ps":
        add("-a", "--all", action="store_true", help="stopped ones too")
        add("-q", "--quiet", action="store_true", help="only ids")
        add("--no-trunc", action="store_true")
        add("-f", "--filter", action="append", default=[], metavar="KEY=VALUE")
        return out
    if name == "logs":
        add("-f", "--follow", action="store_true")
        add("-n", "--tail", default="all", metavar="LINES")
        add("-t", "--timestamps", action="store_true")
        add("--since", metavar="TIME")
        add("--until", metavar="TIME")
        add("container")
        return out
    if name == "stop":
        add("-t", "--time", type=int, metavar="SECONDS", help="how long to wait before SIGKILL")
    elif name == "kill":
        add("-s", "--signal", metavar="SIGNAL")
    elif name == "rm":
        add("-f", "--force", action="store_true", help="kill it first if it runs")
        add("-v", "--volumes", action="store_true", help="its anonymous volumes too")
    add("container", nargs="+")
    return out


def execute(name: str, arguments: argparse.Namespace) -> int:
    """Run one command of this module."""
    engine = client(arguments)
    if name == "ps":
        return ps(engine, arguments)
    if name == "logs":
        return logs(engine, arguments)
    if name == "inspect":
        return inspect(engine, arguments)
    return each(arguments.container, _ACTIONS[name](engine, arguments))


def _ports(container: dict[str, Any]) -> str:
    shown = []
    for port in container["Ports"]:
        inside = f"{port['PrivatePort']}/{port['Type']}"
        host = port.get("IP", "")
        host = f"[{host}]" if ":" in host else host
        shown.append(f"{host}:{port['PublicPort']}->{inside}" if "PublicPort" in port else inside)
    return ", ".join(shown)


def ps(engine: Client, arguments: argparse.Namespace) -> int:
    """One line per container."""
    filters: dict[str, list[str]] = {}
    for item in arguments.filter:
        key, equals, value = item.partition("=")
        if not equals:
            raise CommandFailed(f"bad filter {item!r}: KEY=VALUE expected", 125)
        filters.setdefault(key, []).append(value)
    query = {"all": arguments.all, "filters": json.dumps(filters) if filters else None}
    found = engine.call("GET", "/containers/json", dict(query))
    if arguments.quiet:
        for container in found:
            print(container["Id"] if arguments.no_trunc else container["Id"][:12])
        return 0
    rows = [
        (
            container["Id"] if arguments.no_trunc else container["Id"][:12],
            container["Image"],
            json.dumps(_short(container["Command"], arguments.no_trunc), ensure_ascii=False),
            f"{age(container['Created'])} ago",
            container["Status"],
            _ports(container),
            ",".join(name.lstrip("/") for name in container["Names"]),
        )
        for container in found
    ]
    print(table(("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"), rows))
    return 0


def _short(text: str, whole: bool) -> str:
    return text if whole or len(text) <= 20 else text[:19] + "…"


def logs(engine: Client, arguments: argparse.Namespace) -> int:
    """What the container wrote, each stream to ours."""
    from cli.streams import Demultiplexer, write_all

    details = engine.call("GET", f"/containers/{arguments.container}/json")
    query = {
        "stdout": True,
        "stderr": True,
        "follow": arguments.follow,
        "tail": arguments.tail,
        "timestamps": arguments.timestamps,
        "since": arguments.since,
        "until": arguments.until,
    }
    with engine.send("GET", f"/containers/{arguments.container}/logs", query) as reply:
        frames = Demultiplexer()
        for chunk in reply.chunks():
            if details["Config"]["Tty"]:
                write_all(1, chunk)
                continue
            for stream, payload in frames.feed(chunk):
                write_all(2 if stream == 2 else 1, payload)
    return 0


def inspect(engine: Client, arguments: argparse.Namespace) -> int:
    """Containers and images as one JSON array."""
    found, status = [], 0
    for name in arguments.container:
        try:
            found.append(_inspect_one(engine, name))
        except ApiError as error:
            print(f"gantry: {error.message}", file=sys.stderr)
            status = 1
    print(json.dumps(found, indent=4, ensure_ascii=False))
    return status


def _inspect_one(engine: Client, name: str) -> Any:
    for path in (f"/containers/{name}/json", f"/images/{name}/json"):
        try:
            return engine.call("GET", path)
        except ApiError as error:
            if error.http_status != 404:
                raise
    raise ApiError(f"no container and no image is called {name}", 404)


def each(names: list[str], action: Callable[[str], object]) -> int:
    """Run ``action`` on every name, print the name after it; errors are told and the others still done."""
    status = 0
    for name in names:
        try:
            action(name)
        except ApiError as error:
            print(f"gantry: {error.message}", file=sys.stderr)
            status = 1
        else:
            print(name)
    return status


Action = Callable[[str], object]


def _start(engine: Client, arguments: argparse.Namespace) -> Action:
    return lambda name: engine.call("POST", f"/containers/{name}/start")


def _stop(engine: Client, arguments: argparse.Namespace) -> Action:
    return lambda name: engine.call("POST", f"/containers/{name}/stop", {"t": arguments.time})


def _kill(engine: Client, arguments: argparse.Namespace) -> Action:
    return lambda name: engine.call("POST", f"/containers/{name}/kill", {"signal": arguments.signal})


def _rm(engine: Client, arguments: argparse.Namespace) -> Action:
    query = {"force": arguments.force, "v": arguments.volumes}
    return lambda name: engine.call("DELETE", f"/containers/{name}", dict(query))


_ACTIONS = {"start": _start, "stop": _stop, "kill": _kill, "rm": _rm}
