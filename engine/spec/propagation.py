"""Whether what the user wants to share with the host can be shared: that is up to the mount its source is on.

Rule: the kernel would bind it all the same, and nothing would ever arrive; so it is refused by name, as in Docker.
Sources: mount_namespaces(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from engine.containers.model import MountPoint
from oci.errors import Internal

SHARED = frozenset({"shared", "rshared"})
SLAVE = frozenset({"slave", "rslave"})


class HostMount(NamedTuple):
    """A mount of the host: where, and mountinfo's optional fields (``shared:N``, ``master:N``)."""

    point: str
    groups: tuple[str, ...]

    def is_in(self, *kinds: str) -> bool:
        """Whether it belongs to a peer group in one of the ways ``shared`` and ``master``."""
        return any(group.partition(":")[0] in kinds for group in self.groups)


def parse(mountinfo: str) -> list[HostMount]:
    """The mounts of a mountinfo file, later ones cover earlier ones."""
    found = []
    for line in mountinfo.rstrip("\n").split("\n"):  # a name may have what else ends lines in Unicode
        fields = line.partition(" - ")[0].split(" ")
        # Blanks and the like are written as three octal digits; other bytes are there as they are.
        point = os.fsdecode(os.fsencode(fields[4]).decode("unicode_escape").encode("latin-1"))
        found.append(HostMount(point, tuple(fields[6:])))
    return found


def mount_of(path: str, mounts: Iterable[HostMount]) -> HostMount:
    """The mount that ``path`` is on; symlinks are followed."""
    real = os.path.realpath(path)
    above = [mount for mount in mounts if real == mount.point or real.startswith(f"{mount.point.rstrip('/')}/")]
    return max(above, key=lambda mount: len(mount.point), default=HostMount("/", ()))


def check(points: Iterable[MountPoint]) -> None:
    """Raise ``Internal`` for a bind whose propagation its source's mount does not have."""
    asked = [point for point in points if point.type == "bind" and point.propagation in SHARED | SLAVE]
    if not asked:
        return
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = parse(file.read())[::-1]
    for point in asked:
        mount = mount_of(point.source, mounts)
        place = f"path {point.source} is mounted on {mount.point} but it is not a"
        if point.propagation in SHARED:
            if not mount.is_in("shared"):
                raise Internal(f"{place} shared mount", hint=f"mount --make-shared {mount.point}")
        elif not mount.is_in("shared", "master"):
            raise Internal(f"{place} shared or slave mount", hint=f"mount --make-shared {mount.point}")
