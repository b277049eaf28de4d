"""Which cgroup hierarchies this host has and where a container's cgroups are in them.

Rule: what the kernel reports in ``/proc/self/mountinfo`` and ``/proc/self/cgroup`` decides; nothing is guessed from
names of directories. Sources: proc_pid_mountinfo(5), cgroups(7), runc's treatment of ``linux.cgroupsPath``.
"""

from __future__ import annotations

from runc_py.cgroups.base import CgroupError
from runc_py.light import TYPE_CHECKING, NamedTuple, os, read_file

if TYPE_CHECKING:
    from collections.abc import Callable

MOUNT_POINT = "/sys/fs/cgroup"

LEGACY_CONTROLLERS = frozenset(
    {
        "cpuset",
        "devices",
        "memory",
        "cpu",
        "cpuacct",
        "pids",
        "blkio",
        "hugetlb",
        "net_cls",
        "net_prio",
        "perf_event",
        "freezer",
        "rdma",
        "misc",
        "name=systemd",
    }
)
"""The v1 controllers a container is put in; other named hierarchies belong to somebody else."""


class Hierarchy(NamedTuple):
    """One mounted v1 hierarchy: ``root`` is the cgroup that shows at ``mount_point``."""

    mount_point: str
    root: str
    controllers: tuple[str, ...]


class Host(NamedTuple):
    """``unified`` is the v2 mount point when v2 rules this host, else "" and ``legacy`` has the v1 hierarchies."""

    unified: str
    unified_root: str
    legacy: tuple[Hierarchy, ...]


_current: Host | None = None


def current() -> Host:
    """This host's layout, read once per process: cgroup mounts do not change under a running container engine."""
    global _current
    if _current is None:
        _current = parse_mountinfo(os.fsdecode(read_file("/proc/self/mountinfo")))
    return _current


def parse_mountinfo(text: str) -> Host:
    """The layout told by a mountinfo file. CgroupError when no cgroup file system is mounted."""
    legacy: dict[str, Hierarchy] = {}
    unified: tuple[str, str] | None = None
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        if not separator or not after.startswith("cgroup"):
            continue
        fields = before.split(" ")
        root, mount_point = _unescape(fields[3]), _unescape(fields[4])
        kind, _, rest = after.partition(" ")
        if kind == "cgroup2":
            if unified is None or mount_point == MOUNT_POINT:
                unified = (mount_point, root)
        elif kind == "cgroup":
            options = rest.rpartition(" ")[2].split(",")
            controllers = tuple(option for option in options if option in LEGACY_CONTROLLERS)
            for name in controllers:
                legacy.setdefault(name, Hierarchy(mount_point, root, controllers))
    if legacy and (unified is None or unified[0] != MOUNT_POINT):
        return Host("", "", tuple(dict.fromkeys(legacy.values())))
    if unified is not None:
        return Host(unified[0], unified[1], ())
    raise CgroupError(
        "no cgroup file system is mounted: mount one on /sys/fs/cgroup, or run with --cgroup-manager disabled"
    )


def _unescape(field: str) -> str:
    """Undo mountinfo's octal escapes of blanks and backslashes."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


def own_cgroups(text: str) -> dict[str, str]:
    """Controller → cgroup of the process whose ``/proc/<pid>/cgroup`` is ``text``; v2 has the key ``""``."""
    own: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            own[name] = path
    return own


def read_own_cgroups() -> dict[str, str]:
    """The caller's own cgroups."""
    return own_cgroups(os.fsdecode(read_file("/proc/self/cgroup")))


def clean(cgroups_path: str, container_id: str) -> str:
    """``linux.cgroupsPath`` without doubled slashes and dots; CgroupError for what leaves its place."""
    path = cgroups_path or container_id
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise CgroupError(f'linux.cgroupsPath "{cgroups_path}" must not contain ".."')
    if "\0" in path or "\n" in path:
        raise CgroupError("linux.cgroupsPath must not contain a NUL or a line feed")
    if not parts:
        raise CgroupError(f'linux.cgroupsPath "{cgroups_path}" names the root cgroup, which a container cannot have')
    return ("/" if path.startswith("/") else "") + "/".join(parts)


def legacy_paths(
    host: Host, cgroups_path: str, container_id: str, own: Callable[[], dict[str, str]] = read_own_cgroups
) -> dict[str, str]:
    """Controller → directory of a container on a v1 host."""
    inner = clean(cgroups_path, container_id)
    mine = {} if inner.startswith("/") else own()
    paths: dict[str, str] = {}
    for hierarchy in host.legacy:
        below = ""
        if not inner.startswith("/"):
            below = _below(hierarchy.root, mine.get(hierarchy.controllers[0], "/"))
        directory = os.path.join(f"{hierarchy.mount_point}{below}", inner.lstrip("/"))
        for name in hierarchy.controllers:
            paths[name] = directory
    return paths


def unified_path(
    host: Host, cgroups_path: str, container_id: str, own: Callable[[], dict[str, str]] = read_own_cgroups
) -> str:
    """The directory of a container on a v2 host: relative paths are beside the caller's own cgroup."""
    inner = clean(cgroups_path, container_id)
    below = ""
    if not inner.startswith("/"):
        below = os.path.dirname(_below(host.unified_root, own().get("", "/"))).rstrip("/")
    return os.path.join(f"{host.unified}{below}", inner.lstrip("/"))


def _below(root: str, cgroup: str) -> str:
    """``cgroup`` relative to a hierarchy mounted from ``root``: "" or a path that starts with a slash."""
    if cgroup in (root, "/") or cgroup.startswith("/.."):
        return ""
    if root == "/":
        return cgroup
    return cgroup[len(root) :] if cgroup.startswith(f"{root}/") else ""
