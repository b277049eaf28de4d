"""``docker diff``: what a container changed, read from the upper directory of its overlay.

Rule: nothing of the container is followed: every directory is opened by one name, without links. Source: kernel
``Documentation/filesystems/overlayfs.rst`` (whiteouts, opaque directories).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.containers.model import RootfsMount
from engine.spec.rootfs import layers_of

MODIFIED, ADDED, DELETED = 0, 1, 2

_MOUNTED = "/dev /dev/console /dev/pts /dev/shm /dev/mqueue /proc /sys"
_FILES = "/.dockerenv /etc /etc/hostname /etc/hosts /etc/mtab /etc/resolv.conf"
MADE_BY_THE_RUNTIME = frozenset((*_MOUNTED.split(), *_FILES.split()))
"""Mount points that a start makes in the root: not the container's doing, and Docker does not show them either."""

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


class Change(NamedTuple):
    path: str
    kind: int


def changes(rootfs: Sequence[RootfsMount]) -> list[Change]:
    """Changes of a container's root, parents before children. Run it in a thread."""
    if not any(option.startswith("upperdir=") for mount in rootfs for option in mount.options):
        return []
    with contextlib.ExitStack() as stack:
        upper, *lowers = (_open(stack, layer) for layer in layers_of(rootfs))
        found = list(_walk(upper, lowers, "", stack))
    return _without_runtimes(found)


def _open(stack: contextlib.ExitStack, name: str, directory: int | None = None) -> int:
    descriptor = os.open(name, _FLAGS, dir_fd=directory)
    stack.callback(os.close, descriptor)
    return descriptor


def _walk(upper: int, lowers: list[int], prefix: str, outer: contextlib.ExitStack) -> Iterator[Change]:
    for name in sorted(os.listdir(upper)):
        path = f"{prefix}/{name}"
        found = os.lstat(name, dir_fd=upper)
        below = _shown(lowers, name)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            if below is not None:
                yield Change(path, DELETED)
            continue
        yield Change(path, ADDED if below is None else MODIFIED)
        if stat.S_ISDIR(found.st_mode):
            with contextlib.ExitStack() as stack:
                inner = _open(stack, name, upper)
                merged: list[int] = []
                if not _opaque(inner):
                    merged = list(_merged(stack, lowers, name))
                yield from _walk(inner, merged, path, stack)


def _shown(lowers: Sequence[int], name: str) -> os.stat_result | None:
    """What the layers below show as ``name``."""
    for lower in lowers:
        with contextlib.suppress(OSError):
            found = os.lstat(name, dir_fd=lower)
            return None if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0 else found
    return None


def _merged(stack: contextlib.ExitStack, lowers: Sequence[int], name: str) -> Iterator[int]:
    for lower in lowers:
        try:
            found = os.lstat(name, dir_fd=lower)
        except OSError:
            continue
        if not stat.S_ISDIR(found.st_mode):
            return
        descriptor = _open(stack, name, lower)
        yield descriptor
        if _opaque(descriptor):
            return


def _opaque(descriptor: int) -> bool:
    for key in _OPAQUE:
        with contextlib.suppress(OSError):
            return os.getxattr(descriptor, key) == b"y"
    return False


def _without_runtimes(found: list[Change]) -> list[Change]:
    own = [change for change in found if change.path not in MADE_BY_THE_RUNTIME]
    # A directory of that list counts again when something else in it changed, and a removal always counts.
    kept = {
        change.path
        for change in found
        if change.path in MADE_BY_THE_RUNTIME
        and (change.kind == DELETED or any(other.path.startswith(f"{change.path}/") for other in own))
    }
    return [change for change in found if change.path not in MADE_BY_THE_RUNTIME or change.path in kept]
