"""``--init``: the small process 1 that Docker offers, taken from the host, else runc-py's own.

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


ANNOTATION = "dev.gantry.init"
"""Asks runc-py to be that process itself."""

BUILT_IN = frozenset({"runc-py"})
"""Runtimes that understand the annotation."""


def wrap(spec: dict[str, Any], runtime: str) -> None:
    """Put the command of ``spec`` under an init. FailedPrecondition when neither the host nor ``runtime`` has one."""
    if path := _find():
        spec["mounts"].append({"destination": IN_CONTAINER, "type": "bind", "source": path, "options": ["bind", "ro"]})
        spec["process"]["args"] = [IN_CONTAINER, "--", *spec["process"]["args"]]
    elif runtime in BUILT_IN:
        spec.setdefault("annotations", {})[ANNOTATION] = "true"
    else:
        raise FailedPrecondition(
            f"an init process was asked for; this host has no docker-init or tini, and {runtime} no own",
            hint="install the package tini, use the runtime runc-py, or run without --init",
        )


def _find() -> str | None:
    search = os.pathsep.join((*DIRECTORIES, os.environ.get("PATH", os.defpath)))
    for name in CANDIDATES:
        if path := shutil.which(name, path=search):
            return path
    return None
