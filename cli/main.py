"""``gantry``: find the command, build its parser alone, run it.

Rule: no command pays for another's imports or options; start-up time is the product here.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from cli.errors import CommandFailed

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Create a container from an image and run a command in it"),
    "exec": ("run", "Run a command in a running container"),
    "ps": ("containers", "List containers"),
    "logs": ("containers", "Print what a container wrote"),
    "start": ("containers", "Start stopped containers"),
    "stop": ("containers", "Stop running containers"),
    "kill": ("containers", "Send a signal to running containers"),
    "rm": ("containers", "Remove containers"),
    "inspect": ("containers", "Show everything about containers or images, as JSON"),
    "attach": ("lifecycle", "Connect this terminal with a running container"),
    "restart": ("lifecycle", "Stop containers and start them again"),
    "pause": ("lifecycle", "Freeze every process of containers"),
    "unpause": ("lifecycle", "Let paused containers go on"),
    "rename": ("lifecycle", "Give a container another name"),
    "wait": ("lifecycle", "Wait until containers stop, and print their exit codes"),
    "update": ("lifecycle", "Change limits and restart policy of containers"),
    "commit": ("lifecycle", "Make an image of what a container has changed"),
    "port": ("lifecycle", "List a container's published ports"),
    "diff": ("lifecycle", "List what changed in a container's files"),
    "top": ("lifecycle", "List a container's processes"),
    "cp": ("copying", "Copy files between a container and this machine"),
    "export": ("copying", "Write a container's file system as an archive"),
    "stats": ("usage", "Show what containers use"),
    "events": ("usage", "Show what happens, as it happens"),
    "df": ("usage", "Show what is on disk"),
    "prune": ("usage", "Remove what nothing uses"),
    "container": ("lifecycle", "prune: remove stopped containers"),
    "volume": ("volumes", "Manage volumes: ls, create, inspect, rm, prune"),
    "build": ("build", "Build an image from a Dockerfile"),
    "images": ("images", "List images"),
    "pull": ("images", "Download an image from a registry"),
    "push": ("images", "Upload an image to a registry"),
    "load": ("images", "Load images from an archive"),
    "save": ("images", "Write images to an archive"),
    "import": ("images", "Make an image from an archive of a root file system"),
    "tag": ("images", "Give an image a further name"),
    "rmi": ("images", "Remove images"),
    "history": ("images", "Show the steps an image was made by"),
    "image": ("images", "Manage images: bootstrap makes a base image; inspect, prune"),
    "network": ("networks", "Manage networks: ls, create, rm, inspect, connect, disconnect, prune"),
    "up": ("system", "Start the engine"),
    "down": ("system", "Stop the engine and its containers"),
    "system": ("host", "Install the engine as a service; connect to it over ssh"),
    "certs": ("certs", "Make certificates for an engine that listens on TCP"),
    "doctor": ("host", "Say what this host lacks for containers, and how to mend it"),
    "version": ("system", "Show the versions of client and engine"),
    "info": ("system", "Show what the engine and its host are"),
}
"""Command: (module below ``cli.commands``, help). A module has ``parser(name)`` and ``execute(name, arguments)``."""

TLS_FLAGS = frozenset({"--tls", "--tlsverify", "--tlscacert", "--tlscert", "--tlskey"})

USAGE = """Usage: gantry [-H URL] COMMAND [OPTIONS]

A container engine that starts itself: 'gantry run IMAGE' needs no service.

Commands:
{commands}

Options:
  -H, --host URL   the engine: unix://PATH, tcp://HOST:PORT or ssh://HOST (environment: GANTRY_HOST)
  --tlsverify      TLS, with the files of --tlscacert, --tlscert, --tlskey (default: of ~/.docker, as docker has it)
  -v, --version    print the version of this client

'gantry COMMAND --help' tells more."""


def usage() -> str:
    """The text of ``gantry --help``."""
    return USAGE.format(commands="\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()))


def _tls_flag(flag: str, argv: list[str]) -> None:
    """Note one of Docker's TLS flags for ``cli.transport``."""
    from cli import transport

    name, equals, value = flag.partition("=")
    if name in ("--tls", "--tlsverify"):
        if value not in ("false", "0"):
            transport.tls_options[name[2:]] = "1"
        return
    if not equals and not argv:
        raise CommandFailed(f"flag {name} needs a file", 125)
    transport.tls_options[name[2:]] = value if equals else argv.pop(0)


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
    """The global ``--host`` and what stands behind the global options."""
    host = os.environ.get("GANTRY_HOST") or None
    while argv and argv[0].startswith("-"):
        flag = argv.pop(0)
        if flag in ("-H", "--host"):
            if not argv:
                raise CommandFailed(f"flag {flag} needs a URL", 125)
            host = argv.pop(0)
        elif flag.startswith("--host="):
            host = flag[len("--host=") :]
        elif flag.split("=")[0] in TLS_FLAGS:
            _tls_flag(flag, argv)
        elif flag in ("-v", "--version"):
            argv[:] = ["version", "--client"]
        elif flag in ("-h", "--help"):
            return host, []
        else:
            raise CommandFailed(f"unknown flag: {flag} (see 'gantry --help')", 125)
    return host, argv


def dispatch(argv: list[str]) -> int:
    """Run one command line; the exit status."""
    host, rest = _split(argv)
    if not rest or rest[0] == "help":
        print(usage())
        return 0
    name, *options = rest
    if name not in COMMANDS:
        raise CommandFailed(f"'{name}' is not a gantry command (see 'gantry --help')", 125 if name[:1] == "-" else 1)
    module = import_module(f"cli.commands.{COMMANDS[name][0]}")
    parser = module.parser(name)
    arguments = parser.parse_args(options)
    arguments.host = host
    status: int = module.execute(name, arguments)
    return status


def main() -> None:
    """Console script ``gantry``."""
    try:
        status = dispatch(sys.argv[1:])
        sys.stdout.flush()
    except CommandFailed as error:
        sys.stdout.flush()
        print(f"gantry: {error.message}", file=sys.stderr)
        status = error.status
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 141
    sys.exit(status)


if __name__ == "__main__":
    main()
