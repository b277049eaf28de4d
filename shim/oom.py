"""Hearing of processes that the kernel kills for want of memory, while it happens.

Rule: the counter ``oom_kill`` of the memory cgroup decides, notifications only say when to look. Works for every
runtime, because the cgroup is that of the container's init. Sources: cgroup-v1/memory.rst ("OOM Control": an eventfd
registered in ``cgroup.event_control``), cgroup-v2.rst (``memory.events`` polls as modified).
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable

from runc_py.cgroups import layout
from runc_py.cgroups.base import CgroupError
from shim.loop import READ, Loop

_LOOKS = 4
_LOOK_SECONDS = 0.05
"""The v1 notification comes before the kill is counted."""


class OomWatch:
    """Calls ``on_kill`` for every notification behind which the counter went up. ``close`` it after use."""

    def __init__(
        self, loop: Loop, pid: int, on_kill: Callable[[], None], handed_over: tuple[int, int, int] | None = None
    ) -> None:
        """``handed_over``: go on where another watch of the same container stopped."""
        self._loop, self._on_kill = loop, on_kill
        self._watched = -1
        self._counter = -1
        self._seen = 0
        if handed_over is not None:
            self._watched, self._counter, self._seen = handed_over
            self._watch()
            return
        with contextlib.suppress(OSError, CgroupError, ValueError):
            self._open(pid)

    def handed_over(self) -> tuple[int, int, int]:
        """What another watch needs: the descriptor that is watched, that of the counter (-1: none), the count."""
        return self._watched, self._counter, self._seen

    @property
    def events(self) -> int:
        """The epoll events for which the first descriptor is watched."""
        return select.EPOLLPRI if self._watched == self._counter else READ

    def _open(self, pid: int) -> None:
        host = layout.current()
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            own = layout.own_cgroups(file.read())
        if host.unified:
            directory = _below(host.unified, host.unified_root, own[""])
            self._counter = os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
            self._watched = self._counter
        else:
            memory = next(h for h in host.legacy if "memory" in h.controllers)
            directory = _below(memory.mount_point, memory.root, own["memory"])
            self._counter = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            self._watched = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            with open(f"{directory}/cgroup.event_control", "wb", buffering=0) as control:
                control.write(b"%d %d" % (self._watched, self._counter))
        self._seen = self._kills()
        self._watch()

    def _watch(self) -> None:
        if self._watched >= 0:
            self._loop.watch(self._watched, self.events, self._notified)

    def _kills(self) -> int:
        """The counter; the last known value when the cgroup is gone."""
        with contextlib.suppress(OSError, ValueError):
            for line in os.pread(self._counter, 4096, 0).splitlines():
                name, _, value = line.partition(b" ")
                if name == b"oom_kill":
                    return int(value)
        return self._seen

    def _notified(self, _events: int) -> None:
        if self._watched != self._counter:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._watched)
        self._look(_LOOKS)

    def _look(self, more: int) -> None:
        if not self.look() and more and self._counter >= 0:
            self._loop.call_later(_LOOK_SECONDS, lambda: self._look(more - 1))

    def look(self) -> bool:
        """Compare the counter with what was told; whether there was something to tell."""
        if self._counter < 0:
            return False
        kills, before = self._kills(), self._seen
        self._seen = kills
        if kills > before:
            self._on_kill()
        return kills > before

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._watched >= 0:
            self._loop.unwatch(self._watched)
        for descriptor in {self._watched, self._counter} - {-1}:
            os.close(descriptor)
        self._watched = self._counter = -1


def _below(mount_point: str, root: str, cgroup: str) -> str:
    """The directory of ``cgroup`` in a hierarchy that shows ``root`` at ``mount_point``."""
    relative = cgroup.removeprefix(root) if root != "/" else cgroup
    return f"{mount_point}/{relative.lstrip('/')}"
