"""Lifecycle hooks: programs of the host's administrator that run at six points of a container's life.

Rule: a hook gets the state as JSON on stdin, its own argv and environment, and a deadline; output goes to memory files,
so no hook can block the runtime. Source: runtime-spec ``config.md#posix-platform-hooks``.
"""

from __future__ import annotations

import select

from runc_py import documents
from runc_py.errors import HookFailure
from runc_py.light import TYPE_CHECKING, os, signal

if TYPE_CHECKING:
    from typing import Any, TypeAlias

Hook: TypeAlias = "dict[str, Any]"


OUTPUT_ANNOTATIONS = ("run.oci.hooks.stdout", "run.oci.hooks.stderr")
"""Annotations that name files to which the hooks' output is appended (an extension of crun's)."""


def run_hooks(kind: str, hooks: list[Hook] | None, state: dict[str, Any]) -> None:
    """Run ``hooks`` in order; the first failure ends it (HookFailure)."""
    for index, hook in enumerate(hooks or ()):
        problem = _run(hook, state, redirect=kind != "startContainer")
        if problem:
            raise HookFailure(f"error running {kind} hook #{index}: {hook.get('path')}: {problem}")


def run_hooks_quietly(kind: str, hooks: list[Hook] | None, state: dict[str, Any]) -> list[str]:
    """Run all ``hooks`` whatever happens and return what went wrong (poststop)."""
    problems = []
    for index, hook in enumerate(hooks or ()):
        problem = _run(hook, state)
        if problem:
            cause = problem.replace("exit status", "failed with exit code")
            problems.append(f"{kind} hook {cause} (#{index}: {hook.get('path')})")
    return problems


def _run(hook: Hook, state: dict[str, Any], *, redirect: bool = True) -> str:
    """Run one hook; what went wrong, or "".

    ``redirect`` is off inside a container, where the annotated paths would be the container's.
    """
    path = hook.get("path") or ""
    environment = _environment(hook, host=redirect)
    given, taken = os.memfd_create("hook-state"), os.memfd_create("hook-output")
    opened = [given, taken]
    try:
        os.write(given, documents.dumps(state).encode())
        os.lseek(given, 0, os.SEEK_SET)
        out, err = _outputs(state, taken, opened) if redirect else (taken, taken)
        actions = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)]
        pid = os.posix_spawn(
            path,
            hook.get("args") or [path],
            environment,
            file_actions=actions,
            setsigdef=[signal.SIGPIPE],
            setsigmask=[],
        )
        status = _wait(pid, hook.get("timeout"))
        if status == 0:
            return ""
        output = os.pread(taken, 2048, 0).decode("utf-8", "replace").strip()
        cause = "timed out" if status is None else f"exit status {os.waitstatus_to_exitcode(status)}"
        return f"{cause}, output: {output}"
    except OSError as error:
        return f"{error.filename}: {error.strerror}" if error.filename not in (None, path) else str(error.strerror)
    finally:
        for fd in opened:
            os.close(fd)


def _environment(hook: Hook, *, host: bool) -> dict[str, str]:
    """What the hook has, or ours as in runc where it says nothing, but not for what runs in the container."""
    wanted = hook.get("env")
    if wanted is None:
        return dict(os.environ) if host else {}
    return dict(item.partition("=")[::2] for item in wanted)


def _outputs(state: dict[str, Any], taken: int, opened: list[int]) -> list[int]:
    """Descriptors for a hook's stdout and stderr: the annotated files, else ``taken``."""
    annotations = state.get("annotations") or {}
    found = []
    for name in OUTPUT_ANNOTATIONS:
        path = annotations.get(name)
        fd = taken
        if path:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o700)
            opened.append(fd)
        found.append(fd)
    return found


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
