"""Which engine a command talks to, and the embedded one it may start."""

from __future__ import annotations

import argparse

from cli.http import Client
from oci.hostpaths import default_paths


def client(arguments: argparse.Namespace, *, start: bool = False) -> Client:
    """The client for ``arguments.host``; without one the default engine, started first if ``start`` and it is down."""
    if arguments.host:
        return Client(arguments.host)
    paths = default_paths()
    if start:
        from cli import daemon

        daemon.start(paths, [])
    return Client(f"unix://{paths.engine_socket}")


class Parser(argparse.ArgumentParser):
    """argparse with Docker's exit status for a wrong command line."""

    def error(self, message: str) -> None:  # type: ignore[override]  # the base class says it never returns; exit() does the same
        self.exit(125, f"gantry: {message} (see '{self.prog} --help')\n")
