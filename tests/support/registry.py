"""Debian's docker-registry on a loopback port, plain or with TLS and a password, its storage in a directory."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.support.host import PrivateHost, wait_for

HTPASSWD = "ali:$2y$05$laSQ3Ydd7YdLd54xl2P73e4Uo.zogVd4AHNeSMvhteMXlxgeVbryK\n"
"""User ``ali`` with the password ``sesame``; the registry takes bcrypt only."""


def configuration(
    storage: Path, address: str, *, tls: tuple[Path, Path] | None = None, htpasswd: Path | None = None
) -> str:
    """The registry's YAML."""
    lines = ["version: 0.1", "log:", "  level: warn", "storage:", "  filesystem:", f"    rootdirectory: {storage}"]
    lines += ["  delete:", "    enabled: true", "http:", f"  addr: {address}"]
    if tls is not None:
        lines += ["  tls:", f"    certificate: {tls[0]}", f"    key: {tls[1]}"]
    if htpasswd is not None:
        lines += ["auth:", "  htpasswd:", "    realm: tests", f"    path: {htpasswd}"]
    return "\n".join(lines) + "\n"


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_registry(
    base: Path,
    *,
    host: PrivateHost | None = None,
    tls: tuple[Path, Path] | None = None,
    htpasswd: Path | None = None,
    address: str = "",
    storage: Path | None = None,
) -> Iterator[str]:
    """A registry for one block; gives its ``host:port``. With ``host`` it runs inside of that.

    ``address`` is where it listens (a loopback port by default); two may share one ``storage``.
    """
    address = address or f"127.0.0.1:{free_port() if host is None else 5000}"
    port = int(address.rpartition(":")[2])
    base.mkdir(parents=True, exist_ok=True)
    config = base / "config.yml"
    config.write_text(configuration(storage or base / "storage", address, tls=tls, htpasswd=htpasswd))
    command = ["docker-registry", "serve", str(config)]
    with (base / "registry.log").open("wb") as log:
        if host is not None:
            command = host.command(*command)
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            if host is None:
                wait_for(lambda: listening(port), "the registry")
            else:
                wait_for(lambda: f":{port} " in host.check("ss", "-ltn"), "the registry")
            yield address
        finally:
            if host is not None:  # what we started is nsenter: its child would live on
                for pid in host.pids_of("docker-registry", str(config)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
            else:
                process.terminate()
            process.wait(20)


def listening(port: int) -> bool:
    """Whether somebody takes connections on a loopback port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def fetch(url: str) -> bytes:
    """The body of a plain GET."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())
