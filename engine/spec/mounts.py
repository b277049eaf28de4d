"""All mounts of a container in the order in which they are made.

Rule: default file systems come first, then the engine's files and the user's mounts, parents before what is in them;
a user's mount replaces a default one at the same place. Source: Docker Engine API (``Mounts``, ``Tmpfs``), mount(8).
"""

from __future__ import annotations

import functools
import platform
from typing import Any

from engine.containers.model import MountPoint, SpecRequest
from engine.spec import defaults
from oci.errors import InvalidArgument

FILES = ("resolv.conf", "hostname", "hosts")
"""Files of the engine that appear in the container's ``/etc``."""

KEPT_WRITABLE = frozenset({"/proc", "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev"})
"""Default mounts that stay writable under ``--read-only``."""

TMPFS_BASE = ("noexec", "nosuid", "nodev", "rprivate")
_TMPFS_PAIRS = (
    ("exec", "noexec"),
    ("suid", "nosuid"),
    ("dev", "nodev"),
    ("rw", "ro"),
    ("async", "sync"),
    ("atime", "noatime"),
    ("diratime", "nodiratime"),
    ("relatime", "norelatime"),
    ("strictatime", "nostrictatime"),
    ("mand", "nomand"),
    ("private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"),
)
_TMPFS_GROUPS = {option: group[0] for group in _TMPFS_PAIRS for option in group}
_TMPFS_KEYS = frozenset({"mode", "uid", "gid", "size", "nr_blocks", "nr_inodes", "mpol"})
_TMPFS_FLAGS = frozenset({"defaults", "remount", "dirsync", "bind", "rbind"})


def tmpfs_options(given: str) -> list[str]:
    """Docker's defaults changed by the comma-separated ``given``: of conflicting options the last one wins."""
    chosen: dict[str, str] = {}
    for option in (*TMPFS_BASE, *filter(None, given.split(","))):
        key, separator, _ = option.partition("=")
        if separator and key in _TMPFS_KEYS:
            group = key
        elif not separator and (option in _TMPFS_GROUPS or option in _TMPFS_FLAGS):
            group = _TMPFS_GROUPS.get(option, option)
        else:
            raise InvalidArgument(f'invalid tmpfs option ["{option}"]')
        chosen.pop(group, None)
        if option != "defaults":
            chosen[group] = option
    return list(chosen.values())


@functools.cache
def recursive_readonly() -> bool:
    """Whether this kernel can make a whole mount tree read-only (``mount_setattr``, Linux 5.12)."""
    major, minor = platform.release().split("-")[0].split(".")[:2]
    return (int(major), int(minor)) >= (5, 12)


def user_mount(point: MountPoint) -> dict[str, Any]:
    """The OCI mount of one mount point."""
    if point.type == "tmpfs":
        options = tmpfs_options(",".join((*point.options, *(() if point.rw else ("ro",)))))
        return {"destination": point.destination, "type": "tmpfs", "source": "tmpfs", "options": options}
    options = ["rbind" if point.recursive else "bind"]
    if not point.rw:
        whole = point.recursive and not point.writable_below and recursive_readonly()
        options.append("rro" if whole else "ro")
    if point.propagation or point.type == "bind":
        options.append(point.propagation or "rprivate")
    return {"destination": point.destination, "type": "bind", "source": point.source, "options": options}


def rootfs_propagation(points: tuple[MountPoint, ...]) -> str:
    """What the root mount must be so that the users' propagation modes can work; "" for the runtime's default."""
    asked = {point.propagation for point in points}
    if asked & {"shared", "rshared"}:
        return "shared"
    return "rslave" if asked & {"slave", "rslave"} else ""


def build(request: SpecRequest) -> list[dict[str, Any]]:
    """``mounts`` of the spec."""
    container = request.container
    host = container.host
    own = [*_files(request), *(user_mount(point) for point in container.mounts)]
    for destination, options in (host.tmpfs or {}).items():
        own.append({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": tmpfs_options(options)})
    by_place = {mount["destination"]: mount for mount in own}
    own = sorted(by_place.values(), key=lambda mount: mount["destination"].rstrip("/").count("/"))
    result = [
        mount
        for mount in defaults.mounts(host.shm_size or defaults.SHM_SIZE)
        if mount["destination"] not in by_place
        and not ("/dev" in by_place and mount["destination"].startswith("/dev/"))
        and not (mount["destination"] == "/dev/shm" and (host.ipc_mode == "none" or _shm_source(request)))
    ]
    if (source := _shm_source(request)) and "/dev/shm" not in by_place:
        result.append({"destination": "/dev/shm", "type": "bind", "source": source, "options": ["rbind", "rprivate"]})
    if host.readonly_rootfs:
        for mount in result:
            if mount["destination"] not in KEPT_WRITABLE and "ro" not in mount["options"]:
                mount["options"].append("ro")
    return result + own


def _shm_source(request: SpecRequest) -> str:
    if request.shm_path:
        return request.shm_path
    return "/dev/shm" if request.container.host.ipc_mode == "host" else ""


def _files(request: SpecRequest) -> list[dict[str, Any]]:
    access = ["ro"] if request.container.host.readonly_rootfs else []
    return [
        {
            "destination": f"/etc/{name}",
            "type": "bind",
            "source": f"{request.files}/{name}",
            "options": ["rbind", *access, "rprivate"],
        }
        for name in FILES
    ]


def make_writable(mounts: list[dict[str, Any]], *places: str) -> None:
    """Take ``ro`` away from default mounts (``/sys`` and the cgroup tree of privileged containers)."""
    for mount in mounts:
        if mount["destination"] in places and mount["type"] in ("sysfs", "cgroup"):
            mount["options"] = [option for option in mount["options"] if option != "ro"]
