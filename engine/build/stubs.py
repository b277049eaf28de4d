"""Mount points that a container's mounts needed and that its image does not have: they are no change of the command's.

Rule: only what is empty, and was not there before, is removed; paths are walked without following links.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence

from engine.build.trees import Tree, clean
from engine.spec.rootfs import SnapshotMount, layers_of

ALWAYS = (
    "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/console", "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev",
    "/proc", "/sys/fs/cgroup", "/sys/fs", "/sys", "/etc",
)  # fmt: skip
"""Where every container gets a mount, children before parents."""


def remove_stubs(mounts: Sequence[SnapshotMount], before: Tree, targets: Iterable[str]) -> None:
    """Take empty mount points out of the upper layer of ``mounts``; ``before`` is what the container started from."""
    paths = [clean(path) for path in targets] + [clean(path) for path in ALWAYS]
    above = {parent for path in paths for parent in _parents(path)}
    try:
        upper = os.open(layers_of(mounts)[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, IndexError):
        return
    try:
        for path in sorted({*paths, *above}, key=lambda p: p.count("/"), reverse=True):
            _remove_empty(upper, path, existed=before.node(path) is not None)
    finally:
        os.close(upper)


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def _remove_empty(upper: int, path: str, *, existed: bool) -> None:
    """Remove ``path`` from the upper layer if it is empty: what the command did not fill was made for a mount.

    A directory that existed below shows again when its empty copy in the upper layer goes, unless the command made the
    copy opaque.
    """
    if not path:
        return
    *parents, name = path.split("/")
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        directory = upper
        for parent in parents:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            directory = os.open(parent, flags, dir_fd=directory)
            stack.callback(os.close, directory)
        status = os.lstat(name, dir_fd=directory)
        if stat.S_ISDIR(status.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            stack.callback(os.close, fd)
            if existed and any(attribute.startswith("trusted.overlay.") for attribute in os.listxattr(fd)
                               if attribute.endswith("opaque")):  # fmt: skip
                return
            os.rmdir(name, dir_fd=directory)
        elif stat.S_ISREG(status.st_mode) and not status.st_size and not existed:
            os.unlink(name, dir_fd=directory)
