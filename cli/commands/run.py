"""run and exec: the commands that put a process in front of this terminal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import ExitStack
from types import FrameType
from typing import Any

from cli.engine import Parser, client
from cli.errors import ApiError, CommandFailed
from cli.http import Client, Reply
from cli.streams import on_resize, pump, raw_terminal, terminal_size

ENGINE_FAILED = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127
"""Exit statuses of ``run`` when the program never ran, as Docker gives them."""


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command of this module."""
    # -h is the host name, as with docker.
    out = Parser(f"gantry {name}", add_help=False)
    add = out.add_argument
    add("--help", action="help", help="show this and exit")
    add("-i", "--interactive", action="store_true", help="keep standard input open")
    add("-t", "--tty", action="store_true", help="give it a terminal")
    add("-d", "--detach", action="store_true", help="do not wait for it")
    add("-e", "--env", action="append", default=[], metavar="NAME=VALUE")
    add("-w", "--workdir", default="", metavar="DIR")
    add("-u", "--user", default="", metavar="NAME|UID[:GROUP|GID]")
    add("--privileged", action="store_true")
    if name == "exec":
        add("container")
        add("command", nargs=argparse.REMAINDER)
        return out
    add("--rm", action="store_true", help="remove the container when it ends")
    add("--name")
    add("--pull", choices=("always", "missing", "never"), default="missing")
    add("--entrypoint")
    add("-p", "--publish", action="append", default=[], metavar="[IP:][HOSTPORT:]PORT[/PROTO]")
    add("-P", "--publish-all", action="store_true")
    add("-v", "--volume", action="append", default=[], metavar="SOURCE:TARGET[:ro]")
    add("--tmpfs", action="append", default=[], metavar="DIR[:OPTIONS]")
    add("--network", "--net", default="", metavar="NAME")
    add("-h", "--hostname", default="", metavar="NAME")
    add("-l", "--label", action="append", default=[], metavar="NAME=VALUE")
    add("-m", "--memory", metavar="BYTES", help="a number with b, k, m or g")
    add("--cpus", type=float, default=0.0)
    add("--pids-limit", type=int)
    add("--restart", default="no", metavar="no|always|unless-stopped|on-failure[:N]")
    add("--cap-add", action="append", default=[])
    add("--cap-drop", action="append", default=[])
    add("--security-opt", action="append", default=[])
    add("--read-only", action="store_true")
    add("--stop-signal", default="")
    add("image")
    add("command", nargs=argparse.REMAINDER)
    return out


def execute(name: str, arguments: argparse.Namespace) -> int:
    """Run one command of this module."""
    if name == "exec":
        return exec_command(client(arguments), arguments)
    try:
        return run(client(arguments, start=True), arguments)
    except ApiError as error:
        raise CommandFailed(error.message, failed_status(error.message)) from None


def failed_status(message: str) -> int:
    """Docker's exit status for a start that failed with ``message``."""
    if "executable file not found" in message or "no such file or directory" in message:
        return NOT_FOUND
    if "permission denied" in message or "is a directory" in message:
        return NOT_EXECUTABLE
    return ENGINE_FAILED


_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int:
    """``512m`` in bytes; raises ``CommandFailed``."""
    digits = text.lower().removesuffix("b").rstrip("kmgt")
    unit = text.lower().removesuffix("b")[len(digits) :]
    try:
        return int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError):
        raise CommandFailed(f"invalid size {text!r}: a number with b, k, m or g expected", ENGINE_FAILED) from None


def parse_ports(published: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``-p`` values as (ExposedPorts, PortBindings); ranges must be of one length."""
    exposed: dict[str, Any] = {}
    bindings: dict[str, Any] = {}
    for item in published:
        body, _, protocol = item.partition("/")
        rest, _, inside = body.rpartition(":")
        address, _, outside = rest.rpartition(":") if not rest.startswith("[") or "]:" in rest else (rest, "", "")
        inner, outer = _span(inside, item), _span(outside, item) if outside else []
        if outer and len(inner) != len(outer) and len(inner) != 1:
            raise CommandFailed(f"invalid port mapping {item!r}: the ranges differ in length", ENGINE_FAILED)
        for index, port in enumerate(inner):
            key = f"{port}/{protocol or 'tcp'}"
            host = (outside if len(inner) == 1 else str(outer[index])) if outer else ""
            exposed[key] = {}
            bindings.setdefault(key, []).append({"HostIp": address.strip("[]"), "HostPort": host})
    return exposed, bindings


def _span(text: str, item: str) -> list[int]:
    first, dash, last = text.partition("-")
    try:
        span = list(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        span = []
    if not span or span[0] < 1 or span[-1] > 65535:
        raise CommandFailed(f"invalid port mapping {item!r}: ports are 1 to 65535", ENGINE_FAILED)
    return span


def _pairs(items: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (item.partition("=") for item in items)}


def _environment(items: list[str]) -> list[str]:
    """``NAME`` alone takes our own value, and is left out when we have none."""
    return [
        item if "=" in item else f"{item}={os.environ[item]}" for item in items if "=" in item or item in os.environ
    ]


def _restart(text: str) -> dict[str, Any]:
    name, _, count = text.partition(":")
    if count and not count.isdigit():
        raise CommandFailed(f"invalid restart policy {text!r}: a number expected behind the colon", ENGINE_FAILED)
    return {"Name": name, "MaximumRetryCount": int(count or 0)}


def create_body(arguments: argparse.Namespace) -> dict[str, Any]:
    """The body of ``POST /containers/create``."""
    exposed, bindings = parse_ports(arguments.publish)
    attached = not arguments.detach
    host_config: dict[str, Any] = {
        "AutoRemove": arguments.rm,
        "Binds": [_absolute(volume) for volume in arguments.volume] or None,
        "CapAdd": arguments.cap_add or None,
        "CapDrop": arguments.cap_drop or None,
        "NetworkMode": arguments.network or "default",
        "PortBindings": bindings,
        "Privileged": arguments.privileged,
        "PublishAllPorts": arguments.publish_all,
        "ReadonlyRootfs": arguments.read_only,
        "RestartPolicy": _restart(arguments.restart),
        "SecurityOpt": arguments.security_opt or None,
        "Tmpfs": {path: options for path, _, options in (item.partition(":") for item in arguments.tmpfs)} or None,
        "NanoCpus": int(arguments.cpus * 1e9),
        "Memory": parse_size(arguments.memory) if arguments.memory else 0,
        "PidsLimit": arguments.pids_limit,
    }
    if arguments.tty and attached and sys.stdout.isatty():
        host_config["ConsoleSize"] = list(terminal_size())
    return {
        "Image": arguments.image,
        "Cmd": arguments.command or None,
        "Entrypoint": [arguments.entrypoint] if arguments.entrypoint else None,
        "Env": _environment(arguments.env),
        "ExposedPorts": exposed,
        "Hostname": arguments.hostname,
        "Labels": _pairs(arguments.label),
        "OpenStdin": arguments.interactive,
        "StdinOnce": arguments.interactive and attached,
        "AttachStdin": arguments.interactive and attached,
        "AttachStdout": attached,
        "AttachStderr": attached,
        "Tty": arguments.tty,
        "User": arguments.user,
        "WorkingDir": arguments.workdir,
        "StopSignal": arguments.stop_signal or None,
        "HostConfig": host_config,
    }


def _absolute(volume: str) -> str:
    source, colon, rest = volume.partition(":")
    return os.path.abspath(source) + colon + rest if source.startswith((".", "~")) else volume


def _create(engine: Client, arguments: argparse.Namespace) -> str:
    from cli.commands.images import pull

    body, query = create_body(arguments), {"name": arguments.name}
    if arguments.pull == "always":
        pull(engine, arguments.image)
    try:
        answer = engine.call("POST", "/containers/create", dict(query), body=body)
    except ApiError as error:
        if error.http_status != 404 or arguments.pull != "missing" or "No such image" not in error.message:
            raise
        print(f"Unable to find image '{arguments.image}' locally", file=sys.stderr)
        try:
            pull(engine, arguments.image)
        except CommandFailed as failure:
            raise CommandFailed(failure.message, ENGINE_FAILED) from None
        answer = engine.call("POST", "/containers/create", dict(query), body=body)
    for warning in answer.get("Warnings") or ():
        print(f"WARNING: {warning}", file=sys.stderr)
    return str(answer["Id"])


def run(engine: Client, arguments: argparse.Namespace) -> int:
    """Create, attach, wait, start, copy; the container's exit status."""
    if arguments.tty and arguments.interactive and not arguments.detach and not sys.stdin.isatty():
        raise CommandFailed("the input device is not a TTY: leave -t out, or run this in a terminal")
    container = _create(engine, arguments)
    if arguments.detach:
        engine.call("POST", f"/containers/{container}/start")
        print(container)
        return 0
    query = {"stream": True, "stdin": arguments.interactive, "stdout": True, "stderr": True}
    stream = engine.hijack(f"/containers/{container}/attach", dict(query))
    condition = "removed" if arguments.rm else "next-exit"
    waiting = engine.send("POST", f"/containers/{container}/wait", {"condition": condition})
    with stream, waiting:
        try:
            engine.call("POST", f"/containers/{container}/start")
        except ApiError:
            if arguments.rm:
                _discard(engine, container)
            raise
        return _foreground(engine, container, stream, waiting, arguments)


def _discard(engine: Client, container: str) -> None:
    """Remove a container whose start failed; the engine may have done so already."""
    try:
        engine.call("DELETE", f"/containers/{container}", {"force": True})
    except ApiError as error:
        if error.http_status not in (404, 409):
            raise


def _foreground(engine: Client, container: str, stream: Reply, waiting: Reply, arguments: argparse.Namespace) -> int:
    terminal = arguments.tty and sys.stdin.isatty()

    def resize(rows: int, columns: int) -> None:
        engine.call("POST", f"/containers/{container}/resize", {"h": rows, "w": columns})

    def forward(number: int, frame: FrameType | None) -> None:
        engine.call("POST", f"/containers/{container}/kill", {"signal": signal.Signals(number).name})

    with ExitStack() as stack:
        stack.enter_context(raw_terminal(terminal and arguments.interactive))
        stack.enter_context(on_resize(terminal, resize))
        if not terminal:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, forward))
        pump(stream, stdin=arguments.interactive, terminal=arguments.tty)
        answer = waiting.json()
    if (answer.get("Error") or {}).get("Message"):
        raise CommandFailed(answer["Error"]["Message"], ENGINE_FAILED)
    return int(answer["StatusCode"])


def exec_command(engine: Client, arguments: argparse.Namespace) -> int:
    """``gantry exec``: the command's exit status."""
    if not arguments.command:
        raise CommandFailed("exec needs a command behind the container's name", ENGINE_FAILED)
    attached = not arguments.detach
    body = {
        "AttachStdin": arguments.interactive and attached,
        "AttachStdout": attached,
        "AttachStderr": attached,
        "Cmd": arguments.command,
        "Env": _environment(arguments.env),
        "Privileged": arguments.privileged,
        "Tty": arguments.tty,
        "User": arguments.user,
        "WorkingDir": arguments.workdir,
    }
    if arguments.tty and attached and sys.stdout.isatty():
        body["ConsoleSize"] = list(terminal_size())
    ident = engine.call("POST", f"/containers/{arguments.container}/exec", body=body)["Id"]
    if arguments.detach:
        engine.call("POST", f"/exec/{ident}/start", body={"Detach": True, "Tty": arguments.tty})
        return 0

    def resize(rows: int, columns: int) -> None:
        engine.call("POST", f"/exec/{ident}/resize", {"h": rows, "w": columns})

    terminal = arguments.tty and sys.stdin.isatty()
    try:
        stream = engine.hijack(f"/exec/{ident}/start", body={"Detach": False, "Tty": arguments.tty})
    except ApiError as error:
        raise CommandFailed(error.message, failed_status(error.message)) from None
    with stream, raw_terminal(terminal and arguments.interactive), on_resize(terminal, resize):
        pump(stream, stdin=arguments.interactive, terminal=arguments.tty)
    return int(engine.call("GET", f"/exec/{ident}/json")["ExitCode"] or 0)
