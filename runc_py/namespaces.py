"""Which namespaces a process gets: new ones by ``clone``, existing ones by descriptor.

Rule: descriptors are opened in the parent, by host path, before anything is made; the child only uses them. Order: user
first (it gives the right to the others), mount last (paths mean something else afterwards); cgroup and time are
unshared by the child itself, the first after it is in its cgroup, the second so that its offsets can be written.
"""

from __future__ import annotations

from runc_py import syscalls
from runc_py.errors import InvalidSpec, RuntimeFailure
from runc_py.light import TYPE_CHECKING, os, read_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FLAGS = {
    "user": syscalls.CLONE_NEWUSER,
    "pid": syscalls.CLONE_NEWPID,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "network": syscalls.CLONE_NEWNET,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "time": syscalls.CLONE_NEWTIME,
    "mount": syscalls.CLONE_NEWNS,
}
PROC_NAMES = {"network": "net", "mount": "mnt"}
_JOIN_ORDER = ("ipc", "uts", "network", "cgroup", "time", "mount")
_BY_CHILD = ("cgroup", "time")


class Namespaces:
    """The namespaces of a spec. ``joined`` maps a kind to an open descriptor; ``new`` holds the kinds to make."""

    __slots__ = ("joined", "kinds", "new", "paths")

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self.paths = {entry["type"]: entry["path"] for entry in entries if entry.get("path")}
        self.kinds = frozenset(entry["type"] for entry in entries)
        self.new = self.kinds - self.paths.keys()
        self.joined: dict[str, int] = {}

    def open(self) -> None:
        """Open the namespaces to join."""
        for kind, path in self.paths.items():
            try:
                self.joined[kind] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                self.close()
                raise InvalidSpec(f"linux.namespaces: cannot open {kind} namespace {path}: {error.strerror}") from error

    def close(self) -> None:
        """Close what ``open`` opened."""
        for fd in self.joined.values():
            os.close(fd)
        self.joined = {}

    @property
    def clone_flags(self) -> int:
        """Flags for the clone that makes the container's first process."""
        return sum(FLAGS[kind] for kind in self.new if kind not in _BY_CHILD)

    def join(self) -> None:
        """In the child: enter the existing namespaces, except user and pid, which the parent or the stage enters."""
        for kind in _JOIN_ORDER:
            fd = self.joined.get(kind)
            if fd is not None:
                try:
                    syscalls.setns(fd, FLAGS[kind])
                except OSError as error:
                    path = self.paths[kind]
                    raise RuntimeFailure(f"cannot join {kind} namespace {path}: {error.strerror}") from error


def clone_into(pid_namespace: int | None, clone: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """What ``clone`` gives, its child a member of another pid namespace when there is a descriptor of one."""
    if pid_namespace is None:
        return clone()
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    pid = -1
    try:
        syscalls.setns(pid_namespace, syscalls.CLONE_NEWPID, "pid namespace")
        pid, pidfd = clone()
        return pid, pidfd
    finally:
        if pid:  # the child's own children are to be where it is
            syscalls.setns(own, syscalls.CLONE_NEWPID, "own pid namespace")
        os.close(own)


def write_id_maps(pid: int, linux: dict[str, Any]) -> None:
    """Give the new user namespace of ``pid`` its mappings."""
    privileged = os.geteuid() == 0
    for kind in ("uid", "gid"):
        mappings = linux.get(f"{kind}Mappings") or ()
        if not mappings:
            continue
        if kind == "gid" and not privileged and len(mappings) == 1 and mappings[0].get("size") == 1:
            _write_proc(pid, "setgroups", "deny")
        lines = [f"{entry['containerID']} {entry['hostID']} {entry['size']}" for entry in mappings]
        try:
            _write_proc(pid, f"{kind}_map", "\n".join(lines))
        except PermissionError as error:
            if privileged:
                raise RuntimeFailure(f"linux.{kind}Mappings: the kernel refuses the mapping") from error
            _map_with_helper(f"new{kind}map", pid, lines)
        except OSError as error:
            raise RuntimeFailure(f"linux.{kind}Mappings: {error.strerror}") from error


def missing_maps(linux: dict[str, Any]) -> dict[str, Any]:
    """Mappings for a new user namespace whose spec has none: every id as itself, or, without root, ours as 0.

    The runtime spec leaves this open; crun does the same.
    """
    found: dict[str, Any] = {}
    for kind, own in (("uid", os.geteuid()), ("gid", os.getegid())):
        if linux.get(f"{kind}Mappings"):
            continue
        if os.geteuid():
            found[f"{kind}Mappings"] = [{"containerID": 0, "hostID": own, "size": 1}]
            continue
        rows = [line.split() for line in read_file(f"/proc/self/{kind}_map").splitlines()]
        found[f"{kind}Mappings"] = [
            {"containerID": int(row[0]), "hostID": int(row[0]), "size": int(row[2])} for row in rows
        ]
    return found


def write_time_offsets(pid: int, offsets: dict[str, Any]) -> None:
    """Clock offsets of the time namespace that ``pid`` has made for its children (time_namespaces(7))."""
    lines = [
        f"{clock} {int(value.get('secs') or 0)} {int(value.get('nanosecs') or 0)}" for clock, value in offsets.items()
    ]
    try:
        _write_proc(pid, "timens_offsets", "\n".join(lines))
    except OSError as error:
        raise RuntimeFailure(f"linux.timeOffsets: {error.strerror}") from error


def _write_proc(pid: int, name: str, text: str) -> None:
    fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _map_with_helper(program: str, pid: int, lines: list[str]) -> None:
    arguments = [program, str(pid), *" ".join(lines).split()]
    try:
        child = os.posix_spawnp(program, arguments, os.environ)
    except OSError as error:
        raise RuntimeFailure(
            f"user namespace without root needs {program} (package uidmap): {error.strerror}"
        ) from error
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeFailure(f"{' '.join(arguments)} failed; check /etc/subuid and /etc/subgid")
