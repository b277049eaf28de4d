"""Newer peers than the release here has: where ``tests/install-newer-peers`` unpacked them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

NEWER = Path(os.environ.get("GANTRY_TEST_PEERS", "/var/cache/gantry-tests/trixie"))
MISSING = "not fetched: bash tests/install-newer-peers"


def newer_program(path: str) -> str | None:
    """The program ``path`` (relative to the root) of the newer release; None when it was not fetched."""
    found = NEWER / path
    return str(found) if os.access(found, os.X_OK) else None


def working_criu() -> str | None:
    """A criu that works with the running kernel (``criu check``): the newer release's, else the one on PATH."""
    for program in (newer_program("criu/criu"), shutil.which("criu")):
        if program is not None and os.geteuid() == 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run([program, "check"], capture_output=True, timeout=30, check=False)
                if done.returncode == 0:
                    return program
    return None


def compose_program() -> str | None:
    """Compose v2: the newer release's, else the one on PATH."""
    return newer_program("usr/libexec/docker/cli-plugins/docker-compose") or shutil.which("docker-compose")


NODE_MODULES = Path(os.environ.get("GANTRY_TEST_NODE", "/var/cache/gantry-tests/node")) / "node_modules"
NODE_MISSING = "node or dockerode is missing: bash tests/install-node-clients"


def has_dockerode() -> bool:
    """Whether Node and the package that ``tests/install-node-clients`` fetches are here."""
    return shutil.which("node") is not None and (NODE_MODULES / "dockerode" / "package.json").exists()
