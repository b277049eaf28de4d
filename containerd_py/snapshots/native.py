"""The copying snapshotter: every snapshot is a whole tree of its own. Works everywhere, costs the image's size.

Rule: the copy is made beside, outside of any transaction, and becomes a snapshot's directory by one rename. Where the
file system shares blocks (btrfs, xfs) the data is cloned, not copied: ioctl_ficlone(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Sequence

from containerd_py.interfaces import Mount
from containerd_py.snapshots.base import MAKING, VIEW, DirectorySnapshotter

_FICLONE = 0x40049409


class NativeSnapshotter(DirectorySnapshotter):
    """Trees copied from their parents; views show the parent itself, read-only."""

    name = "native"
    copies = True

    def data(self, id: int) -> str:
        return f"{self.directory}/{id}"

    def _stage(self, parents: Sequence[int], kind: int) -> str:
        if not parents or kind == VIEW:
            return ""
        source = f"{self.directory}/{MAKING}{uuid.uuid4().hex}"
        try:
            copy_tree(self.data(parents[0]), source)
        except BaseException:
            shutil.rmtree(source, ignore_errors=True)
            raise
        return source

    def _make(self, path: str, source: str, parents: Sequence[int], kind: int) -> None:
        if source:
            os.rename(source, path)
        else:
            os.mkdir(path, 0o755)
            os.chmod(path, 0o755)  # noqa: S103 # it is a root directory, and the umask may have narrowed it

    def _mounts(self, id: int, parents: Sequence[int], kind: int) -> list[Mount]:
        source = parents[0] if kind == VIEW and parents else id
        return [Mount("bind", self.data(source), options=("ro" if kind == VIEW else "rw", "rbind"))]


def copy_tree(source: str, target: str) -> None:
    """Copy a tree with everything a file system knows of it: owners, modes, times, attributes, hard links, holes."""
    _Copier().directory(source, target)


class _Copier:
    def __init__(self) -> None:
        self._links: dict[int, str] = {}
        self._clones = True

    def directory(self, source: str, target: str) -> None:
        os.mkdir(target, 0o700)
        with os.scandir(source) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    self.directory(entry.path, f"{target}/{entry.name}")
                else:
                    self._other(entry.path, f"{target}/{entry.name}")
        _attributes(source, target, os.lstat(source))

    def _other(self, source: str, target: str) -> None:
        info = os.lstat(source)
        if info.st_nlink > 1:
            first = self._links.setdefault(info.st_ino, target)
            if first != target:
                os.link(first, target, follow_symlinks=False)
                return
        if stat.S_ISREG(info.st_mode):
            self._file(source, target, info.st_size)
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(source), target)
        else:
            os.mknod(target, info.st_mode, info.st_rdev)
        _attributes(source, target, info)

    def _file(self, source: str, target: str, size: int) -> None:
        from_fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        to_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if self._clones and size:
                try:
                    fcntl.ioctl(to_fd, _FICLONE, from_fd)
                    return
                except OSError:
                    self._clones = False
            _copy_pieces(from_fd, to_fd, size)
        finally:
            os.close(from_fd)
            os.close(to_fd)


def _copy_pieces(source: int, target: int, size: int) -> None:
    """Copy the data between holes (lseek(2), SEEK_DATA)."""
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            copied = os.copy_file_range(source, target, end - at, at, at)
            if not copied:
                return
            at += copied


def _attributes(source: str, target: str, info: os.stat_result) -> None:
    os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(target, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(source, follow_symlinks=False):
        with contextlib.suppress(OSError):
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)
