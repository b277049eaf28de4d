"""cgroup v1: one directory per hierarchy.

Rule: controllers that share a hierarchy share a directory, and every directory is made, entered and removed once.
Sources: kernel ``Documentation/admin-guide/cgroup-v1``, runtime-spec ``config-linux.md``.
"""

from __future__ import annotations

import errno
import time

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
from runc_py.light import TYPE_CHECKING, os, signal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

FREEZE_SECONDS = 5.0
KILL_ROUNDS = 10


class LegacyManager(CgroupManager):
    """The cgroups of one container in all mounted v1 hierarchies."""

    kind = "v1"

    def __init__(self, paths: Mapping[str, str]) -> None:
        self.paths = dict(paths)
        self._directories = tuple(dict.fromkeys(paths.values()))

    def create(self) -> None:
        """Also fills an empty cpuset from its parent, because no process can enter one."""
        for directory in self._directories:
            if not make_directory(directory) and (held := read_pids(directory)):
                raise CgroupError(f"container's cgroup is not empty: {len(held)} process(es) found in {directory}")
        self._fill_cpuset()

    def create_missing(self) -> None:
        for directory in self._directories:
            make_directory(directory)
        self._fill_cpuset()

    def _fill_cpuset(self) -> None:
        if cpuset := self.paths.get("cpuset"):
            inherit_cpuset(cpuset)

    def apply(self, pid: int) -> None:
        for directory in self._directories:
            attach(f"{directory}/cgroup.procs", pid)

    def enter(self) -> None:
        for directory in self._directories:
            write(f"{directory}/tasks", 0)

    def set(self, resources: dict[str, Any]) -> None:
        from runc_py.cgroups.v1_limits import LIMITS, set_devices

        if resources.get("unified"):
            raise CgroupError("linux.resources.unified needs cgroup v2, and this host has v1")
        if (rules := resources.get("devices")) is not None and "devices" in self.paths:
            set_devices(self.paths["devices"], rules)
        for limit in LIMITS:
            values = limit.asked(resources)
            if not values:
                continue
            if limit.controller not in self.paths:
                asked = f"{limit.section}.{next(iter(values))}".rstrip(".")
                raise CgroupError(
                    f'linux.resources.{asked} needs the cgroup v1 controller "{limit.controller}", which is not mounted'
                )
            limit.write(self.paths[limit.controller], values)

    def _directory(self, *controllers: str) -> str:
        for controller in controllers:
            if controller in self.paths:
                return self.paths[controller]
        if not self._directories:
            raise CgroupError("no cgroup v1 controller is mounted")
        return self._directories[0]

    def pids(self, recursive: bool = True) -> list[int]:
        return all_pids(self._directory("devices", "freezer", "pids"), recursive)

    def _freezer(self) -> str:
        if "freezer" not in self.paths:
            raise CgroupError("the cgroup v1 freezer is not mounted: the container cannot be paused")
        return f"{self.paths['freezer']}/freezer.state"

    def freeze(self) -> None:
        """A task that forks at the wrong moment leaves the cgroup FREEZING, hence the order is repeated."""
        path = self._freezer()
        deadline = time.monotonic() + FREEZE_SECONDS
        delay = 0.00001
        while True:
            write(path, "FROZEN")
            for _ in range(20):
                if read(path) == "FROZEN":
                    return
                time.sleep(delay)
            delay = min(delay * 2, 0.01)
            if time.monotonic() > deadline:
                write(path, "THAWED")
                raise CgroupError(
                    f"cgroup: {path} stays FREEZING after {FREEZE_SECONDS:g} s: a process cannot be stopped"
                )

    def thaw(self) -> None:
        write(self._freezer(), "THAWED")

    def frozen(self) -> bool:
        if "freezer" not in self.paths:
            return False
        try:
            return read(f"{self.paths['freezer']}/freezer.state") != "THAWED"
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return False
            raise

    def kill_all(self, sig: int) -> None:
        """Freeze, signal, thaw: a fork bomb cannot outrun it. Without a freezer, repeated until nothing is left."""
        if "freezer" not in self.paths:
            self._kill_repeatedly(sig)
            return
        paused = self.frozen()
        if not self.pids():
            return
        if not paused:
            self.freeze()
        try:
            signal_all(self.pids(), sig)
        finally:
            if not paused or sig == signal.SIGKILL:
                self.thaw_if_there()

    def _kill_repeatedly(self, sig: int) -> None:
        signalled: set[int] = set()
        for _ in range(KILL_ROUNDS):
            fresh = [pid for pid in self.pids() if sig == signal.SIGKILL or pid not in signalled]
            if not fresh:
                return
            signal_all(fresh, sig)
            signalled.update(fresh)

    def destroy(self) -> None:
        deadline = time.monotonic() + DESTROY_SECONDS
        first: CgroupError | None = None
        for directory in self._directories:
            try:
                remove_tree(directory, deadline)
            except CgroupError as error:
                first = first or error
        if first is not None:
            raise first

    def stats(self) -> dict[str, Any]:
        from runc_py.cgroups.v1_stats import gather

        return gather(self.paths)

    def oom_kills(self) -> int:
        if "memory" not in self.paths:
            return 0
        try:
            text = read(f"{self.paths['memory']}/memory.oom_control")
        except OSError:
            return 0
        fields = dict(line.split() for line in text.splitlines())
        return int(fields.get("oom_kill", 0))

    def container_mounts(self, *, cgroup_namespace: bool) -> ContainerMounts:
        from runc_py.cgroups import layout

        mounts = [CgroupMount("", "tmpfs", "tmpfs", ("nosuid", "nodev", "noexec", "mode=755"))]
        symlinks: list[tuple[str, str]] = []
        for hierarchy in layout.current().legacy:
            directory = self.paths.get(hierarchy.controllers[0])
            if directory is None:
                continue
            name = os.path.basename(hierarchy.mount_point)
            if cgroup_namespace:
                mounts.append(CgroupMount(name, "cgroup", "cgroup", hierarchy.controllers))
            else:
                mounts.append(CgroupMount(name, "bind", directory, ("bind",)))
            symlinks += [(one, name) for one in hierarchy.controllers if one != name and not one.startswith("name=")]
        return ContainerMounts(tuple(mounts), tuple(symlinks))


def inherit_cpuset(directory: str) -> None:
    """Fill empty ``cpuset.cpus`` and ``cpuset.mems`` from the parent, outermost first."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        path = f"{directory}/{name}"
        if read(path):
            continue
        parent = f"{os.path.dirname(directory)}/{name}"
        if not os.path.exists(parent):
            raise CgroupError(f"cgroup: {path} is empty and there is no parent to take it from")
        if not read(parent):
            inherit_cpuset(os.path.dirname(directory))
        write(path, read(parent))
