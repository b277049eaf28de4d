"""Orphans: containers and shims whose parents died become children of this process, a subreaper.

Rule: a zombie is left alone for ``GRACE_SECONDS``, so that whoever started it as a child of its own can collect it
first; after that it is an orphan, and its status is remembered for those who look for a container's exit. Processes of
``containers`` are nobody's but ours when they are our children: they are collected at once, because the kernel tells
their exit status to a shim that holds their pidfd only then. Older kernels tell nobody, so every status is also a file
in a directory where shims look (``shim.exits``).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterable

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 1.0
REMEMBERED = 4096
ENDED = "ended"
"""The directory of statuses, in the daemon's state directory."""


def become_subreaper() -> None:
    """Have orphaned descendants become our children. Raises ``OSError`` (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


class Reaper:
    """Collects orphans of the running event loop's process. Call ``start`` in the main thread."""

    def __init__(self, directory: str) -> None:
        """``directory`` is where statuses are written, one file for each pid."""
        self._directory = directory
        self.containers: Callable[[], Iterable[int]] = tuple
        """Tells the pids of containers' first processes, whoever their parent is."""
        self._statuses: OrderedDict[int, int] = OrderedDict()
        self._suspect = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        os.makedirs(self._directory, 0o700, exist_ok=True)
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._child_ended)
        self._child_ended()

    def close(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        if self._timer is not None:
            self._timer.cancel()

    def status(self, pid: int) -> int | None:
        """``waitpid`` status of an orphan; None when it was none of ours. Collects it now if it is a zombie."""
        with contextlib.suppress(ChildProcessError):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._remember(found, status)
        return self._statuses.get(pid)

    def _child_ended(self) -> None:
        for pid in self.containers():
            self.status(pid)
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        while (pid := _zombie()) is not None:
            if pid != self._suspect:
                # First seen now: its parent, if that is one of us, has until the next look.
                self._suspect = pid
                self._schedule()
                return
            try:
                _, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
            self._remember(pid, status)

    def _remember(self, pid: int, status: int) -> None:
        self._statuses[pid] = status
        with open(f"{self._directory}/.new", "w", encoding="ascii") as file:
            file.write(str(status))
        os.rename(file.name, f"{self._directory}/{pid}")
        if len(self._statuses) > REMEMBERED:
            oldest, _ = self._statuses.popitem(last=False)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._directory}/{oldest}")


def _zombie() -> int | None:
    """Pid of a child that has ended and was not collected; None when there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None
