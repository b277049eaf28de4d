"""Reading files of a container's root file system before anything is mounted.

Rule: the layers are untrusted. No path is ever given to the kernel to resolve; every component is looked up by itself,
without following links, in each layer from top to bottom, as overlayfs merges them (whiteouts, opaque directories).
Source: kernel ``Documentation/filesystems/overlayfs.rst``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Protocol

from oci.errors import InvalidArgument

MAX_LINKS = 40
MAX_BYTES = 8 << 20
"""No passwd or group file is larger; a hostile layer must not fill the daemon's memory."""

_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_WHITEOUT = ("trusted.overlay.whiteout", "user.overlay.whiteout")


class SnapshotMount(Protocol):
    """A mount as the Snapshots service describes it."""

    @property
    def type(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...


def layers_of(mounts: Sequence[SnapshotMount]) -> list[str]:
    """Host directories that make up the rootfs, the topmost first."""
    if len(mounts) != 1:
        raise InvalidArgument(f"a root file system of {len(mounts)} mounts cannot be read before it is mounted")
    mount = mounts[0]
    if mount.type != "overlay":
        return [mount.source]
    upper: list[str] = []
    lower: list[str] = []
    for option in mount.options:
        key, _, value = option.partition("=")
        if key == "upperdir":
            upper = [_unescape(value)]
        elif key == "lowerdir":
            lower = _split_lower(value)
        elif key == "lowerdir+":
            lower.append(value)
    return upper + lower


def _split_lower(value: str) -> list[str]:
    """``lowerdir``'s value: colons between directories, a backslash before a colon that is part of a name."""
    parts = value.replace("\\\\", "\0").replace("\\:", "\1").split(":")
    return [part.replace("\1", ":").replace("\0", "\\") for part in parts if part]


def _unescape(value: str) -> str:
    return value.replace("\\:", ":").replace("\\\\", "\\")


class Rootfs:
    """A read-only merged view of layers; use as a context manager, it holds descriptors."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._stack = contextlib.ExitStack()
        self._root = [self._keep(os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) for layer in layers]

    def __enter__(self) -> Rootfs:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _keep(self, descriptor: int) -> int:
        self._stack.callback(os.close, descriptor)
        return descriptor

    def read(self, path: str) -> bytes | None:
        """A regular file's content; None when there is no such file in the container."""
        found = self._walk(path)
        if found is None:
            return None
        directory, name = found
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                return None
            raise
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            return file.read(MAX_BYTES)

    def _walk(self, path: str) -> tuple[int, str] | None:
        """(directory descriptor, name) of the file that ``path`` leads to in the merged view."""
        trail = [self._root]
        pending = _parts(path)
        links = 0
        while pending:
            name = pending.pop(0)
            if name == "..":
                trail = trail[:-1] or trail
                continue
            entry = self._find(trail[-1], name)
            if entry is None:
                return None
            layer, mode = entry
            if stat.S_ISLNK(mode):
                links += 1
                if links > MAX_LINKS:
                    return None
                target = os.readlink(name, dir_fd=layer)
                if target.startswith("/"):
                    trail = [self._root]
                pending = _parts(target) + pending
            elif stat.S_ISDIR(mode):
                trail.append(list(self._merged(trail[-1], name)))
            else:
                return None if pending else (layer, name)
        return None

    @staticmethod
    def _find(directories: Sequence[int], name: str) -> tuple[int, int] | None:
        """The topmost layer that has ``name``, and its mode; None when it is missing or whited out."""
        for directory in directories:
            status = lstat_at(directory, name)
            if status is None:
                continue
            return None if is_whiteout(directory, name, status) else (directory, status.st_mode)
        return None

    def _merged(self, directories: Sequence[int], name: str) -> Iterator[int]:
        """The directories of all layers that show through as ``name``."""
        for directory in directories:
            status = lstat_at(directory, name)
            if status is None:
                continue
            if not stat.S_ISDIR(status.st_mode):
                return
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = self._keep(os.open(name, flags, dir_fd=directory))
            yield descriptor
            if is_opaque(descriptor):
                return


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def lstat_at(directory: int, name: str) -> os.stat_result | None:
    """What ``name`` is in an open directory; None when it is not there."""
    try:
        return os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return None


def is_whiteout(directory: int, name: str, status: os.stat_result) -> bool:
    """Whether a layer's ``name`` says that what lower layers have of that name is gone."""
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        return False
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        return _attribute(descriptor, _WHITEOUT) is not None
    finally:
        os.close(descriptor)


def is_opaque(descriptor: int) -> bool:
    """Whether a layer's directory hides what lower layers have in it."""
    return _attribute(descriptor, _OPAQUE) == b"y"


def _attribute(descriptor: int, names: tuple[str, ...]) -> bytes | None:
    for name in names:
        with contextlib.suppress(OSError):
            return os.getxattr(descriptor, name)
    return None
