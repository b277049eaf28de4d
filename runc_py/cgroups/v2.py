"""cgroup v2: one directory, and controllers that its parents must hand down.

Rule: the manager only ever enables controllers in parents; what it cannot enable shows as the clear error of the write
that needed it. Source: kernel ``Documentation/admin-guide/cgroup-v2.rst``.
"""

from __future__ import annotations

import errno
import time

from runc_py.cgroups import layout
from runc_py.cgroups.base import (
    DESTROY_SECONDS,
    CgroupError,
    CgroupManager,
    CgroupMount,
    ContainerMounts,
    all_pids,
    attach,
    make_directory,
    read,
    read_pids,
    remove_tree,
    signal_all,
    write,
)
from runc_py.cgroups.v2_limits import apply_limits
from runc_py.cgroups.v2_stats import gather
from runc_py.light import TYPE_CHECKING, os, signal

if TYPE_CHECKING:
    from typing import Any

FREEZE_SECONDS = 5.0
WANTED = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc")


class UnifiedManager(CgroupManager):
    """The cgroup of one container in the v2 tree."""

    kind = "v2"

    def __init__(self, path: str, mount_point: str = "") -> None:
        self.path = path
        self.paths = {"": path}
        self._mount_point = mount_point

    def create(self) -> None:
        mount_point = self._mount_point or layout.current().unified
        enable_controllers(mount_point, self.path)
        if not make_directory(self.path) and (held := read_pids(self.path)):
            raise CgroupError(f"container's cgroup is not empty: {len(held)} process(es) found in {self.path}")

    def create_missing(self) -> None:
        """Systemd hands down what it knows and was asked to count; cpuset, hugetlb and their like are not among it."""
        enable_controllers(self._mount_point or layout.current().unified, self.path)

    def apply(self, pid: int) -> None:
        attach(f"{self.path}/cgroup.procs", pid)

    def enter(self) -> None:
        write(f"{self.path}/cgroup.procs", 0)

    def descriptor(self) -> int | None:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise CgroupError(f"cgroup: cannot open {self.path}: {os.strerror(error.errno or 0)}") from error

    def set(self, resources: dict[str, Any]) -> None:
        apply_limits(self.path, resources)

    def pids(self, recursive: bool = True) -> list[int]:
        return all_pids(self.path, recursive)

    def freeze(self) -> None:
        self._switch_freezer("1")

    def thaw(self) -> None:
        self._switch_freezer("0")

    def _switch_freezer(self, value: str) -> None:
        """Order it, then wait until ``cgroup.events`` agrees: the kernel stops tasks one after another."""
        write(f"{self.path}/cgroup.freeze", value)
        deadline = time.monotonic() + FREEZE_SECONDS
        delay = 0.00002
        while self._event("frozen") != value:
            if time.monotonic() > deadline:
                if value == "1":
                    write(f"{self.path}/cgroup.freeze", "0")
                raise CgroupError(f"cgroup: {self.path}/cgroup.events does not show frozen {value}")
            time.sleep(delay)
            delay = min(delay * 2, 0.01)

    def _event(self, name: str) -> str:
        try:
            rows = [line.split() for line in read(f"{self.path}/cgroup.events").splitlines()]
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise CgroupError(f"cgroup: cannot read {self.path}/cgroup.events: {reason}") from error
        return {row[0]: row[1] for row in rows if len(row) == 2}.get(name, "0")

    def frozen(self) -> bool:
        try:
            return read(f"{self.path}/cgroup.freeze") == "1"
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return False
            raise

    def kill_all(self, sig: int) -> None:
        """``cgroup.kill`` (Linux 5.14) does SIGKILL in one go; anything else is freeze, signal, thaw."""
        if not self.pids():
            return
        if sig == signal.SIGKILL and os.path.exists(f"{self.path}/cgroup.kill"):
            write(f"{self.path}/cgroup.kill", 1)
            return
        paused = self.frozen()
        if not paused:
            self.freeze()
        try:
            signal_all(self.pids(), sig)
        finally:
            if not paused or sig == signal.SIGKILL:
                self.thaw_if_there()

    def destroy(self) -> None:
        remove_tree(self.path, time.monotonic() + DESTROY_SECONDS)

    def stats(self) -> dict[str, Any]:
        return gather(self.path)

    def oom_kills(self) -> int:
        try:
            rows = (line.split() for line in read(f"{self.path}/memory.events").splitlines())
        except OSError:
            return 0
        return int({row[0]: row[1] for row in rows if len(row) == 2}.get("oom_kill", 0))

    def container_mounts(self, *, cgroup_namespace: bool) -> ContainerMounts:
        if cgroup_namespace:
            return ContainerMounts((CgroupMount("", "cgroup2", "cgroup", ()),), ())
        return ContainerMounts((CgroupMount("", "bind", self.path, ("bind",)),), ())


def enable_controllers(mount_point: str, path: str) -> None:
    """Make the parents of ``path`` and have each hand its controllers down.

    ``cgroup.subtree_control`` is only written where something is missing: each write stops the whole system's forks for
    a moment. A controller that one parent refuses to hand down is left out.
    """
    relative = os.path.relpath(path, mount_point)
    if relative.startswith(".."):
        raise CgroupError(f"cgroup: {path} is not below the cgroup v2 mount {mount_point}")
    parent = mount_point
    for part in relative.split("/"):
        if not os.path.isdir(parent):
            make_directory(parent)
        _hand_down(parent)
        parent = f"{parent}/{part}"


def _hand_down(parent: str) -> None:
    try:
        available = read(f"{parent}/cgroup.controllers").split()
        enabled = read(f"{parent}/cgroup.subtree_control").split()
    except OSError as error:
        raise CgroupError(f"cgroup: {parent} is no cgroup v2 directory: {os.strerror(error.errno or 0)}") from error
    missing = [f"+{name}" for name in WANTED if name in available and name not in enabled]
    if not missing:
        return
    control = f"{parent}/cgroup.subtree_control"
    try:
        write(control, " ".join(missing))
    except CgroupError:
        for order in missing:
            try:
                write(control, order)
            except CgroupError:
                continue  # for example cpu under a real-time task: only a limit that needs it should fail
