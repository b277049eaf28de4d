"""up, down, version, info."""

from __future__ import annotations

import argparse
import platform
from typing import Any

from cli import daemon
from cli.engine import Parser, client
from cli.errors import EngineUnreachable
from oci.hostpaths import HostPaths, default_paths
from oci.version import __version__


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command of this module."""
    out = Parser(f"gantry {name}")
    if name == "up":
        out.add_argument("--data-root", metavar="DIR")
        out.add_argument("--exec-root", metavar="DIR")
        out.add_argument("-H", "--listen", action="append", default=[], metavar="URL", help="listen here as well")
    elif name == "down":
        out.add_argument("--keep", action="store_true", help="leave running containers and containerd-py as they are")
    elif name == "version":
        out.add_argument("--client", action="store_true", help="only this client")
    return out


def execute(name: str, arguments: argparse.Namespace) -> int:
    """Run one command of this module."""
    return {"up": up, "down": down, "version": version, "info": info}[name](arguments)


def up(arguments: argparse.Namespace) -> int:
    """Start the engine and say how to reach it."""
    defaults = default_paths()
    paths = HostPaths(arguments.data_root or defaults.data_root, arguments.exec_root or defaults.exec_root)
    extra = [part for url in arguments.listen for part in ("-H", url)]
    if extra:
        extra = ["-H", f"unix://{paths.engine_socket}", *extra]
    started = daemon.start(paths, extra)
    print(f"engine {'started' if started else 'was running'}: unix://{paths.engine_socket}")
    print(f"for the docker command: docker context create gantry --docker host=unix://{paths.engine_socket}")
    return 0


def down(arguments: argparse.Namespace) -> int:
    """Stop the engine; it being down already is fine."""
    try:
        client(arguments).call("POST", "/gantry/down", {"keep": arguments.keep})
    except EngineUnreachable as error:
        print(error.message)
        return 0
    print("engine stopped" + (", containers go on" if arguments.keep else ""))
    return 0


def version(arguments: argparse.Namespace) -> int:
    """Versions of both sides."""
    if arguments.client:
        print(f"Gantry version {__version__}")
        return 0
    print(f"Client:\n Version:     {__version__}\n Python:      {platform.python_version()}")
    answer: dict[str, Any] = client(arguments).call("GET", "/version")
    print(f"\nEngine:\n API version: {answer['ApiVersion']} (minimum {answer['MinAPIVersion']})")
    for component in answer["Components"]:
        print(f" {component['Name'] + ':':<13}{component['Version']}")
    print(f" Kernel:      {answer['KernelVersion']}")
    return 0


INFO_ROWS = (
    ("Containers", "Containers"), (" running", "ContainersRunning"), (" paused", "ContainersPaused"),
    (" stopped", "ContainersStopped"), ("Images", "Images"), ("Version", "ServerVersion"), ("Storage driver", "Driver"),
    ("Cgroup driver", "CgroupDriver"), ("Cgroup version", "CgroupVersion"), ("Runtime", "DefaultRuntime"),
    ("Kernel", "KernelVersion"), ("Operating system", "OperatingSystem"), ("Architecture", "Architecture"),
    ("CPUs", "NCPU"), ("Root directory", "DockerRootDir"),
)  # fmt: skip


def info(arguments: argparse.Namespace) -> int:
    """What the engine and its host are."""
    from cli.tables import size

    answer: dict[str, Any] = client(arguments).call("GET", "/info")
    for label, key in INFO_ROWS:
        print(f"{label}: {answer[key]}")
    print(f"Memory: {size(answer['MemTotal'])}")
    for warning in answer.get("Warnings") or ():
        print(warning)
    return 0
