"""Lifecycle hooks: programs of the host's administrator that run at six points of a container's life.

Rule: a hook gets the state as JSON on stdin, its own argv and environment, and a deadline; output goes to memory files,
so no hook can block the runtime. Source: runtime-spec ``config.md#posix-platform-hooks``.
"""

from __future__ import annotations

import json
import os
import select
import signal
from typing import Any

from runc_py.errors import HookFailure

Hook = dict[str, Any]


def run_hooks(kind: str, hooks: list[Hook] | None, state: dict[str, Any]) -> None:
    """Run ``hooks`` in order; the first failure ends it (HookFailure)."""
    for index, hook in enumerate(hooks or ()):
        _run(f"{kind} hook #{index}", hook, state)


def run_hooks_quietly(kind: str, hooks: list[Hook] | None, state: dict[str, Any]) -> list[str]:
    """Run all ``hooks`` whatever happens and return what went wrong (poststop)."""
    problems = []
    for index, hook in enumerate(hooks or ()):
        try:
            _run(f"{kind} hook #{index}", hook, state)
        except HookFailure as error:
            problems.append(str(error))
    return problems


def _run(name: str, hook: Hook, state: dict[str, Any]) -> None:
    path = hook.get("path") or ""
    environment = dict(item.partition("=")[::2] for item in hook.get("env") or ())
    given, taken = os.memfd_create("hook-state"), os.memfd_create("hook-output")
    try:
        os.write(given, json.dumps(state).encode())
        os.lseek(given, 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, taken, 1), (os.POSIX_SPAWN_DUP2, taken, 2)]
        try:
            pid = os.posix_spawn(
                path,
                hook.get("args") or [path],
                environment,
                file_actions=actions,
                setsigdef=[signal.SIGPIPE],
                setsigmask=[],
            )
        except OSError as error:
            raise HookFailure(f"error running {name}: {path}: {error.strerror}") from error
        status = _wait(pid, hook.get("timeout"))
        if status != 0:
            output = os.pread(taken, 2048, 0).decode("utf-8", "replace").strip()
            cause = "timed out" if status is None else f"exit status {os.waitstatus_to_exitcode(status)}"
            raise HookFailure(f"error running {name}: {path}: {cause}, output: {output}")
    finally:
        os.close(given)
        os.close(taken)


def _wait(pid: int, timeout: Any) -> int | None:
    """The wait status; None when the time was over (the hook is killed then)."""
    if timeout:
        pidfd = os.pidfd_open(pid)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        over = not poller.poll(float(timeout) * 1000)
        os.close(pidfd)
        if over:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
    return os.waitpid(pid, 0)[1]
