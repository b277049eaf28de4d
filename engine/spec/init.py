"""``--init``: the small process 1 that Docker offers, which Gantry takes from the host.

Rule: a container that asked for an init never starts without one.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

from oci.errors import FailedPrecondition

IN_CONTAINER = "/sbin/docker-init"
CANDIDATES = ("docker-init", "tini-static", "tini")
DIRECTORIES = ("/usr/local/libexec/docker", "/usr/libexec/docker", "/usr/local/lib/docker", "/usr/lib/docker")


def wrap(args: list[str]) -> tuple[list[str], dict[str, Any]]:
    """(the command under init, the mount that brings init in). FailedPrecondition when the host has none."""
    path = _find()
    if path is None:
        raise FailedPrecondition(
            "a container with an init process was asked for, and this host has no docker-init or tini",
            hint="install the package tini, or run without --init",
        )
    mount = {"destination": IN_CONTAINER, "type": "bind", "source": path, "options": ["bind", "ro"]}
    return [IN_CONTAINER, "--", *args], mount


def _find() -> str | None:
    search = os.pathsep.join((*DIRECTORIES, os.environ.get("PATH", os.defpath)))
    for name in CANDIDATES:
        if path := shutil.which(name, path=search):
            return path
    return None
