"""The process object of an exec: the container's, changed by what ``POST /containers/{id}/exec`` asked for.

Rule: an exec has the container's rights and environment unless it is privileged or names its own. Source: Docker Engine
API (``ExecConfig``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine.containers.model import Container, RootfsMount
from engine.spec import capabilities, process, security, users
from engine.spec.rootfs import Rootfs, layers_of


class ExecRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What an exec asks for; empty fields mean the container's. ``console_size`` is (rows, columns)."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str = ""
    cwd: str = ""
    tty: bool = False
    privileged: bool = False
    console_size: tuple[int, int] = (0, 0)


def build_exec(container: Container, rootfs: Sequence[RootfsMount], request: ExecRequest) -> dict[str, Any]:
    """The OCI process object. ``rootfs`` are the snapshot's mounts; users are read from its layers as they are now."""
    config, host = container.config, container.host
    privileged = host.privileged or request.privileged
    names = capabilities.effective(host.cap_add, host.cap_drop, privileged=privileged)
    with Rootfs(layers_of(rootfs)) as files:
        user = users.resolve_in(files, request.user or config.user, host.group_add or ())
    env = process.environment(config.env or (), hostname=config.hostname or container.id[:12], tty=request.tty)
    result: dict[str, Any] = {
        "terminal": request.tty,
        "user": process.user_object(user),
        "args": list(request.args),
        "env": process.merge_environment(env, request.env),
        "cwd": request.cwd or config.working_dir or "/",
        "capabilities": process.capability_sets(names),
        "noNewPrivileges": security.parse(host.security_opt).no_new_privileges,
        "oomScoreAdj": host.oom_score_adj,
    }
    if limits := process.rlimits(host.ulimits or ()):
        result["rlimits"] = limits
    if request.tty and any(request.console_size):
        height, width = request.console_size
        result["consoleSize"] = {"height": height, "width": width}
    return result
