"""system install, uninstall, dial-stdio, and doctor: the engine and the host it runs on."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys

from cli import transport
from cli.commands import usage
from cli.engine import Parser, client
from cli.errors import CommandFailed
from oci.errors import GantryError
from oci.hostpaths import default_paths

USAGE = {
    "df": "show what is on disk",
    "events": "show what happens, as it happens",
    "prune": "remove what nothing uses",
}
"""What ``gantry system`` can do besides, as docker has it."""


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of ``gantry system`` or ``gantry doctor``."""
    out = Parser(f"gantry {name}")
    if name == "doctor":
        return out
    commands = out.add_subparsers(dest="action", required=True, metavar="ACTION")
    install = commands.add_parser("install", help="write systemd units for the engine")
    remove = commands.add_parser("uninstall", help="remove them again")
    for command in (install, remove):
        command.add_argument("--user", action="store_true", help="for this user's service manager")
        command.add_argument("--dry-run", action="store_true", help="show what would be done")
    install.add_argument("--force", action="store_true", help="replace units that were changed")
    for action, text in USAGE.items():
        usage.options(action, commands.add_parser(action, help=text))
    commands.add_parser("dial-stdio", help="connect standard input and output with the engine (for ssh:// hosts)")
    return out


def execute(name: str, arguments: argparse.Namespace) -> int:
    """Run one command of this module."""
    if name == "doctor":
        return doctor()
    if arguments.action in USAGE:
        return usage.execute(arguments.action, arguments)
    return {"install": install, "uninstall": uninstall, "dial-stdio": dial_stdio}[arguments.action](arguments)


def install(arguments: argparse.Namespace) -> int:
    """Write the units and say what to run next."""
    from deploy import units

    wanted = units.files(default_paths(), user=arguments.user)
    if arguments.dry_run:
        for file in wanted:
            print(f"# {file.path}\n{file.text}")
        return 0
    try:
        written = units.install(wanted, force=arguments.force)
    except GantryError as error:
        raise CommandFailed(str(error)) from None
    except OSError as error:
        raise CommandFailed(f"cannot write {error.filename}: {error.strerror} (are you root? else --user)") from None
    for path in written:
        print(path)
    manager = "systemctl --user" if arguments.user else "systemctl"
    print(f"next: {manager} daemon-reload && {manager} enable --now gantry.socket gantry.service")
    return 0


def uninstall(arguments: argparse.Namespace) -> int:
    """Remove the units."""
    from deploy import units

    wanted = units.files(default_paths(), user=arguments.user)
    paths = [f.path for f in wanted if os.path.exists(f.path)] if arguments.dry_run else units.uninstall(wanted)
    for path in paths:
        print(path)
    return 0


def dial_stdio(arguments: argparse.Namespace) -> int:
    """Copy both ways until the engine has said all, each half for itself: neither waits for the other to be read."""
    import threading

    engine = client(arguments).connect()
    threading.Thread(target=_feed, args=(engine,), daemon=True).start()
    while data := engine.recv(1 << 16):
        _write(data)
    return 0


def _feed(engine: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, 1 << 16):
            engine.sendall(data)
        transport.half_close(engine)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def doctor() -> int:
    """What this host lacks, and how to mend it; status 1 when containers cannot run."""
    from deploy import doctor as checks

    worst = 0
    color = sys.stdout.isatty()
    for finding in checks.examine(default_paths()):
        mark = ("ok", "note", "FAIL")[finding.severity]
        if color:
            mark = f"\033[{(32, 33, 31)[finding.severity]}m{mark}\033[0m"
        print(f"{mark:<4}  {finding.subject}: {finding.text}")
        if finding.fix:
            print(f"      fix: {finding.fix}")
        worst = max(worst, finding.severity)
    return 1 if worst == checks.FAIL else 0
