"""Docker Compose as a client, where it is installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PLUGIN_DIRECTORIES = (
    "~/.docker/cli-plugins",
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
)


def compose_program() -> str | None:
    """Path of Compose v2: ``GANTRY_TEST_COMPOSE``, a plugin of the docker command, or on PATH; None without one."""
    given = os.environ.get("GANTRY_TEST_COMPOSE")
    if given:
        return given
    for directory in PLUGIN_DIRECTORIES:
        path = Path(directory).expanduser() / "docker-compose"
        if os.access(path, os.X_OK):
            return str(path)
    return shutil.which("docker-compose")
