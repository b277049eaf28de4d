"""attach, restart, pause, unpause, rename, wait, update, commit, port, diff, top and container prune."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

from cli.commands.containers import each
from cli.engine import Parser, client
from cli.errors import CommandFailed
from cli.http import Client
from cli.tables import size, table

KINDS = ("C", "A", "D")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command of this module."""
    out = Parser(f"gantry {name}")
    add = out.add_argument
    if name == "container":
        prune = out.add_subparsers(dest="action", required=True, metavar="prune").add_parser("prune")
        prune.add_argument("-f", "--force", action="store_true", help="do not ask")
        prune.add_argument("--filter", action="append", default=[], metavar="KEY=VALUE")
        return out
    if name == "attach":
        add("--no-stdin", action="store_true", help="only show what the container says")
        add("--detach-keys", default=None, metavar="KEYS", help="default ctrl-p,ctrl-q")
    elif name == "restart":
        add("-t", "--time", type=int, metavar="SECONDS", help="how long to wait before SIGKILL")
        add("-s", "--signal", metavar="SIGNAL")
    elif name == "update":
        _limits(out)
    elif name == "commit":
        add("-a", "--author", default="")
        add("-m", "--message", default="", metavar="TEXT")
        add("-c", "--change", action="append", default=[], metavar="INSTRUCTION", help="a line of a Dockerfile")
        add("-p", "--pause", default="true", choices=("true", "false"), help="pause it meanwhile (default true)")
    elif name == "diff":
        add("container")
        return out
    if name in ("restart", "pause", "unpause", "wait", "update"):
        add("container", nargs="+")
    else:
        add("container")
        rest = {"rename": ("name", None), "commit": ("image", "?"), "port": ("port", "?"), "top": ("ps_args", "*")}
        if name in rest:
            word, count = rest[name]
            if count:
                add(word, nargs=count)
            else:
                add(word)
    return out


def _limits(out: argparse.ArgumentParser) -> None:
    add = out.add_argument
    for flag in ("--memory", "--memory-swap", "--memory-reservation"):
        add(flag, metavar="BYTES", help="such as 512m; -1 for no limit")
    for flag in ("--cpu-shares", "--cpu-period", "--cpu-quota", "--pids-limit"):
        add(flag, type=int, metavar="N")
    add("--cpus", type=float, metavar="N", help="such as 1.5")
    add("--cpuset-cpus", metavar="LIST")
    add("--cpuset-mems", metavar="LIST")
    add("--restart", metavar="POLICY[:N]", help="no, always, unless-stopped or on-failure")


def execute(name: str, arguments: argparse.Namespace) -> int:
    """Run one command of this module."""
    commands: dict[str, Callable[[Client, argparse.Namespace], int]] = {
        "attach": attach, "restart": restart, "rename": rename, "wait": wait, "update": update, "commit": commit,
        "port": port, "diff": diff, "top": top, "container": prune,
    }  # fmt: skip
    engine = client(arguments)
    if name in ("pause", "unpause"):
        return each(arguments.container, lambda one: engine.call("POST", f"/containers/{one}/{name}"))
    return commands[name](engine, arguments)


def attach(engine: Client, arguments: argparse.Namespace) -> int:
    """This terminal becomes the container's; its exit status."""
    from cli.streams import on_resize, pump, raw_terminal, terminal_size

    path = f"/containers/{arguments.container}"
    details = engine.call("GET", f"{path}/json")
    if not details["State"]["Running"]:
        raise CommandFailed(f"you cannot attach to the stopped container {arguments.container}: start it first")
    tty = bool(details["Config"]["Tty"])
    stdin = bool(details["Config"]["OpenStdin"]) and not arguments.no_stdin
    query = {"stream": True, "stdin": stdin, "stdout": True, "stderr": True, "detachKeys": arguments.detach_keys}
    terminal = tty and stdin and sys.stdin.isatty()

    def resize(rows: int, columns: int) -> None:
        engine.call("POST", f"{path}/resize", {"h": rows, "w": columns})

    stream = engine.hijack(f"{path}/attach", dict(query))
    with stream, raw_terminal(terminal), on_resize(terminal, resize):
        if terminal:
            resize(*terminal_size())
        pump(stream, stdin=stdin, terminal=tty)
    state = engine.call("GET", f"{path}/json")["State"]
    return 0 if state["Running"] else int(state["ExitCode"])


def restart(engine: Client, arguments: argparse.Namespace) -> int:
    """Stop and start again."""
    query = {"t": arguments.time, "signal": arguments.signal}
    return each(arguments.container, lambda one: engine.call("POST", f"/containers/{one}/restart", dict(query)))


def rename(engine: Client, arguments: argparse.Namespace) -> int:
    """Give a container another name."""
    engine.call("POST", f"/containers/{arguments.container}/rename", {"name": arguments.name})
    return 0


def wait(engine: Client, arguments: argparse.Namespace) -> int:
    """Wait until they stop; one exit code a line."""
    for one in arguments.container:
        print(engine.call("POST", f"/containers/{one}/wait")["StatusCode"], flush=True)
    return 0


def update(engine: Client, arguments: argparse.Namespace) -> int:
    """Other limits, at once."""
    body: dict[str, Any] = {}
    for key, text in (
        ("Memory", arguments.memory),
        ("MemorySwap", arguments.memory_swap),
        ("MemoryReservation", arguments.memory_reservation),
    ):
        if text is not None:
            body[key] = bytes_of(text)
    for key in ("CpuShares", "CpuPeriod", "CpuQuota", "PidsLimit", "CpusetCpus", "CpusetMems"):
        value = getattr(arguments, re.sub(r"(?<!^)(?=[A-Z])", "_", key).lower())
        if value is not None:
            body[key] = value
    if arguments.cpus is not None:
        body["NanoCpus"] = int(arguments.cpus * 10**9)
    if arguments.restart is not None:
        policy, _, count = arguments.restart.partition(":")
        if count and not count.isdecimal():
            raise CommandFailed(f"invalid restart policy {arguments.restart!r}: POLICY or on-failure:N expected", 125)
        body["RestartPolicy"] = {"Name": policy, "MaximumRetryCount": int(count or 0)}
    if not body:
        raise CommandFailed("you must give at least one limit or --restart (see 'gantry update --help')", 125)
    return each(arguments.container, lambda one: engine.call("POST", f"/containers/{one}/update", body=body))


def bytes_of(text: str) -> int:
    """``512m`` in bytes; ``-1`` stays."""
    if text == "-1":
        return -1
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise CommandFailed(f"invalid size {text!r}: a number with k, m, g or t expected", 125)
    return int(float(match[1]) * 1024 ** _POWER[match[2].lower()])


def commit(engine: Client, arguments: argparse.Namespace) -> int:
    """An image of what the container has changed; its id."""
    name = arguments.image or ""
    head, colon, tag = name.rpartition(":")
    repository, tag = (head, tag) if colon and "/" not in tag else (name, "")
    query = {
        "container": arguments.container,
        "repo": repository or None,
        "tag": tag or None,
        "author": arguments.author,
        "comment": arguments.message,
        "pause": arguments.pause == "true",
        "changes": "\n".join(arguments.change) or None,
    }
    print(engine.call("POST", "/commit", dict(query), body={})["Id"])
    return 0


def port(engine: Client, arguments: argparse.Namespace) -> int:
    """Published ports, or where one of them is."""
    ports = engine.call("GET", f"/containers/{arguments.container}/json")["NetworkSettings"]["Ports"]
    wanted = arguments.port if not arguments.port or "/" in arguments.port else f"{arguments.port}/tcp"
    found = False
    for inside, bindings in sorted(ports.items()):
        for binding in bindings or ():
            host = f"[{binding['HostIp']}]" if ":" in binding["HostIp"] else binding["HostIp"]
            if wanted in (None, inside):
                found = True
                print(f"{host}:{binding['HostPort']}" if wanted else f"{inside} -> {host}:{binding['HostPort']}")
    if wanted and not found:
        raise CommandFailed(f"no public port {wanted!r} published for {arguments.container}")
    return 0


def diff(engine: Client, arguments: argparse.Namespace) -> int:
    """What changed in the container's files: C, A or D and the path."""
    for change in engine.call("GET", f"/containers/{arguments.container}/changes") or ():
        print(KINDS[change["Kind"]], change["Path"])
    return 0


def top(engine: Client, arguments: argparse.Namespace) -> int:
    """The container's processes."""
    query = {"ps_args": " ".join(arguments.ps_args) or None}
    answer = engine.call("GET", f"/containers/{arguments.container}/top", dict(query))
    print(table(answer["Titles"], answer["Processes"]))
    return 0


def prune(engine: Client, arguments: argparse.Namespace) -> int:
    """Remove stopped containers."""
    if not arguments.force:
        raise CommandFailed("this removes all stopped containers: say --force", 125)
    answer = engine.call("POST", "/containers/prune", {"filters": filters_of(arguments.filter)})
    for one in answer["ContainersDeleted"] or ():
        print(one)
    print(f"reclaimed {size(answer['SpaceReclaimed'])}")
    return 0


def filters_of(given: list[str]) -> str | None:
    """``KEY=VALUE`` words as the API's filters parameter."""
    import json

    filters: dict[str, list[str]] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise CommandFailed(f"bad filter {item!r}: KEY=VALUE expected", 125)
        filters.setdefault(key, []).append(value)
    return json.dumps(filters) if filters else None
