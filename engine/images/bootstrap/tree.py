"""A directory tree or a list of entries as a tar whose bytes depend on nothing but their content.

Rule: names sorted, times capped, numeric owners only, hard links by inode, extended attributes kept.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO

PIECE = 1 << 20
KEPT_ATTRIBUTES = ("security.capability", "user.")


class Packer:
    """Writes one tar. ``latest`` caps modification times (seconds since the epoch)."""

    def __init__(self, out: BinaryIO, latest: int) -> None:
        self._tar = tarfile.TarFile(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)
        self._latest = latest
        self._inodes: dict[tuple[int, int], str] = {}

    def close(self) -> None:
        self._tar.close()

    def entry(self, name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
        """One entry that is on no disk."""
        item = tarfile.TarInfo(name)
        item.type, item.mode, item.size, item.linkname, item.mtime = kind, mode, len(data), link, self._latest
        self._tar.addfile(item, io.BytesIO(data))

    def tree(self, root: str) -> None:
        """Everything below ``root``, of its own file system's kinds only: no devices, no sockets."""
        for path in _sorted(root):
            self._path(path, os.path.relpath(path, root))

    def _path(self, path: str, name: str) -> None:
        status = os.lstat(path)
        item = tarfile.TarInfo(name)
        item.mode, item.uid, item.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        item.mtime = min(int(status.st_mtime), self._latest)
        item.pax_headers = _attributes(path)
        if stat.S_ISDIR(status.st_mode):
            item.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(status.st_mode):
            item.type, item.linkname = tarfile.SYMTYPE, os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            first = self._inodes.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                item.type, item.linkname = tarfile.LNKTYPE, first
            else:
                item.size = status.st_size
                with open(path, "rb") as file:
                    self._tar.addfile(item, file)
                return
        else:
            return
        self._tar.addfile(item)


def _sorted(root: str) -> Iterator[str]:
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        yield entry.path
        if entry.is_dir(follow_symlinks=False):
            yield from _sorted(entry.path)


def _attributes(path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for name in sorted(os.listxattr(path, follow_symlinks=False)):
            if name.startswith(KEPT_ATTRIBUTES):
                raw = os.getxattr(path, name, follow_symlinks=False)
                found[f"SCHILY.xattr.{name}"] = raw.decode("utf-8", "surrogateescape")
    return found


def newest(root: str) -> int:
    """The latest modification time of a regular file below ``root``: what packages brought, in seconds."""
    times = (os.lstat(path) for path in _sorted(root))
    return max((int(s.st_mtime) for s in times if stat.S_ISREG(s.st_mode)), default=0)


async def pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    """``file`` from its start, in pieces."""
    file.seek(0)
    while data := file.read(PIECE):
        yield data
