"""The file system of a stage or an image as a tree to copy from, read from its layers without mounting anything.

Rule: the layers are untrusted; a name is looked up in one open directory at a time and links are never followed by the
kernel. Overlay's whiteouts and opaque directories are honoured (kernel ``Documentation/filesystems/overlayfs.rst``).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections import OrderedDict
from collections.abc import Sequence
from typing import BinaryIO

from engine.build.trees import Node, walk
from engine.spec.rootfs import is_opaque, is_whiteout, lstat_at

OPEN_DIRECTORIES = 64
"""Directories held open at a time; each costs a descriptor per layer that has it."""

KEPT_XATTRS = ("security.capability", "user.")
PIECE = 1 << 20


class StageTree:
    """A read-only ``Tree`` over directories, topmost first. Close it when the copy is done."""

    def __init__(self, layers: Sequence[str]) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._root = [os.open(layer, flags) for layer in layers]
        self._open: OrderedDict[str, list[int]] = OrderedDict()

    def close(self) -> None:
        """Close every directory. Idempotent."""
        for fds in (*self._open.values(), self._root):
            for fd in fds:
                os.close(fd)
        self._open.clear()
        self._root = []

    def _directory(self, path: str) -> list[int] | None:
        """Descriptors of the directories that show through at ``path``; None when it is no directory."""
        if not path:
            return self._root
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        parent, _, name = path.rpartition("/")
        above = self._directory(parent)
        if above is None:
            return None
        found = self._merged(above, name)
        if not found:
            return None
        self._open[path] = found
        self._shrink(path)
        return found

    def _shrink(self, keep: str) -> None:
        while len(self._open) > OPEN_DIRECTORIES:
            oldest = next(iter(self._open))
            if oldest == keep:
                return
            for fd in self._open.pop(oldest):
                os.close(fd)

    @staticmethod
    def _merged(above: Sequence[int], name: str) -> list[int]:
        found: list[int] = []
        for directory in above:
            status = lstat_at(directory, name)
            if status is None:
                continue
            if not stat.S_ISDIR(status.st_mode):
                break
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            found.append(os.open(name, flags, dir_fd=directory))
            if is_opaque(found[-1]):
                break
        return found

    def _find(self, path: str) -> tuple[int, str, os.stat_result] | None:
        """(directory, name, status) of what shows at ``path``."""
        parent, _, name = path.rpartition("/")
        for directory in self._directory(parent) or ():
            status = lstat_at(directory, name)
            if status is not None:
                return None if is_whiteout(directory, name, status) else (directory, name, status)
        return None

    def node(self, path: str) -> Node | None:
        """What is at ``path``, links not followed."""
        if not path:
            return _node(os.fstat(self._root[0]), "") if self._root else Node(stat.S_IFDIR | 0o755)
        found = self._find(path)
        if found is None:
            return None
        directory, name, status = found
        return _node(status, os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else "")

    def children(self, path: str) -> list[str]:
        """Names that show in a directory, sorted."""
        hidden: set[str] = set()
        shown: set[str] = set()
        for directory in self._directory(path) or ():
            for name in os.listdir(directory):
                if name in hidden or name in shown:
                    continue
                status = lstat_at(directory, name)
                gone = status is None or is_whiteout(directory, name, status)
                (hidden if gone else shown).add(name)
        return sorted(shown)

    def open(self, path: str) -> BinaryIO:
        """The content of a regular file."""
        found = self._find(path)
        if found is None:
            raise FileNotFoundError(path)
        directory, name, _ = found
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return open(os.open(name, flags, dir_fd=directory), "rb")

    def digest(self, path: str) -> str:
        """Hex SHA-256 of a file's content; reads it."""
        digest = hashlib.sha256()
        with self.open(path) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        return digest.hexdigest()

    def xattrs(self, path: str) -> dict[str, bytes]:
        """Attributes that an image keeps, of files and directories."""
        found = self._find(path)
        if found is None or stat.S_IFMT(found[2].st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            return {}
        directory, name, _ = found
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            names = [n for n in os.listxattr(fd) if n.startswith(KEPT_XATTRS) and not n.startswith("user.overlay.")]
            return {n: os.getxattr(fd, n) for n in names}
        finally:
            os.close(fd)


def copy_out(tree: StageTree, source: str, target: str) -> None:
    """Copy what is below the directory ``source`` into the empty directory ``target`` of this host. Blocking.

    Owners, modes and links are kept, devices and sockets left out. ``target`` is nobody else's while this runs: names
    come from the tree one by one, and only directories made here are entered.
    """
    for path, node in walk(tree, source):
        place, origin = f"{target}/{path}", f"{source}/{path}" if source else path
        if node.is_dir:
            os.mkdir(place)
        elif node.is_link:
            os.symlink(node.link, place)
        elif node.is_file:
            with tree.open(origin) as file, open(place, "xb") as out:
                shutil.copyfileobj(file, out, PIECE)
        else:
            continue
        os.chown(place, node.uid, node.gid, follow_symlinks=False)
        if not node.is_link:
            os.chmod(place, stat.S_IMODE(node.mode))
        os.utime(place, ns=(node.mtime, node.mtime), follow_symlinks=False)


def _node(status: os.stat_result, link: str) -> Node:
    return Node(
        status.st_mode,
        status.st_size if stat.S_ISREG(status.st_mode) else 0,
        status.st_mtime_ns,
        status.st_uid,
        status.st_gid,
        link,
        status.st_rdev,
    )
