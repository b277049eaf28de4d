"""Layer archives from file systems: an overlay's upper directory, or two trees compared.

Rule: the archive holds what changed and whiteouts for what went, in sorted order, so that equal trees give equal bytes
(image-spec ``layer.md``). Overlay's own marks (0/0 devices, ``trusted.overlay.*``) become whiteouts and never leave.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from containerd_py.diff.apply import OPAQUE, WHITEOUT, write_all
from containerd_py.diff.streams import Stage, compressor
from oci import tarhead

_OVERLAY = "trusted.overlay."
_OVERLAY_MARKS = (_OVERLAY, "user.overlay.")
_PIECE = 1 << 20
_NODES = {stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}
Mounts = list[list[Any]]


class DigestingWriter:
    """Compresses to a descriptor and hashes both sides; what is long is done by threads, while the next is read."""

    def __init__(self, fd: int, compression: str, *others: Callable[[bytes], object]) -> None:
        """``others`` get the plain archive, too, in pieces."""
        self._fd = fd
        self._compressor = compressor(compression)
        self._plain = hashlib.sha256()
        self._written = hashlib.sha256()
        self._works = (self._plain.update, self._compress, *others)
        self._stages: list[Stage] = []
        self._waiting: list[bytes] = []
        self._room = _PIECE
        self.plain_size = 0
        self.size = 0

    def write(self, data: bytes) -> None:
        self._waiting.append(data)
        self._room -= len(data)
        if self._room <= 0:
            self._hand_on()

    def _hand_on(self) -> None:
        self._stages = self._stages or [Stage(work) for work in self._works]
        piece = self._gathered()
        for stage in self._stages:
            stage.put(piece)

    def _gathered(self) -> bytes:
        piece = b"".join(self._waiting)
        self._waiting = []
        self._room = _PIECE
        self.plain_size += len(piece)
        return piece

    def _compress(self, data: bytes) -> None:
        self._out(self._compressor.compress(data))

    def _out(self, data: bytes) -> None:
        self._written.update(data)
        self.size += len(data)
        write_all(self._fd, data)

    def finish(self) -> dict[str, Any]:
        """End the archive; digests and sizes of plain and written bytes."""
        self.write(tarhead.END)
        if self._stages and self._waiting:
            self._hand_on()
        for stage in self._stages:
            stage.finish()
        if not self._stages:  # most layers of a build are too short for threads
            piece = self._gathered()
            for work in self._works:
                work(piece)
        self._out(self._compressor.flush())
        return {
            "digest": "sha256:" + self._written.hexdigest(),
            "size": self.size,
            "diff_id": "sha256:" + self._plain.hexdigest(),
            "plain_size": self.plain_size,
        }


def _options(mount: list[Any]) -> dict[str, str]:
    return dict(option.partition("=")[::2] for option in mount[3])


def upper_of(left: Mounts, right: Mounts) -> str | None:
    """The upper directory that alone holds right's changes to left; None when trees must be compared."""
    if len(right) != 1 or right[0][0] != "overlay" or len(left) != 1:
        return None
    options = _options(right[0])
    upper = options.get("upperdir")
    below = _options(left[0]).get("lowerdir") if left[0][0] == "overlay" else left[0][1]
    if upper is None or "upperdir" in _options(left[0]) or below != options.get("lowerdir"):
        return None
    return None if _needs_overlay(upper) else upper


def _needs_overlay(upper: str) -> bool:
    """Whether the directory holds redirects or metadata-only copies, which mean nothing without the layers below."""
    for directory, _names, files in os.walk(upper):
        for path in (directory, *(os.path.join(directory, f) for f in files)):
            attributes = os.listxattr(path, follow_symlinks=False)
            if any(mark + what in attributes for mark in _OVERLAY_MARKS for what in ("redirect", "metacopy")):
                return True
    return False


class LayerWriter:
    """Writes members in the form layers have."""

    def __init__(self, root: str, out: DigestingWriter, epoch: int | None) -> None:
        """``epoch``: seconds that no time in the archive may be later than (``SOURCE_DATE_EPOCH``)."""
        self._root = root.rstrip("/")
        self._out = out
        self._epoch = epoch * 10**9 if epoch is not None else None
        self._links: dict[tuple[int, int], str] = {}
        self._parents: set[str] = {""}

    def add(self, name: str, info: os.stat_result | None = None) -> None:
        """Write the file, directory, link or node ``name`` of the root, after its parent directories.

        ``info``: its ``lstat``, where that is known.
        """
        self._add_parents(name)
        path = f"{self._root}/{name}"
        try:
            info = info or os.lstat(path)
            self._add(name, path, info)
        except FileNotFoundError:
            return  # a running container removed it since the directory was listed

    def _add(self, name: str, path: str, info: os.stat_result) -> None:
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFSOCK:
            return  # sockets have no place in tar
        first = self._links.get((info.st_dev, info.st_ino)) if info.st_nlink > 1 else None
        if kind == stat.S_IFDIR:
            self._parents.add(name)
            self._put(name, path, info, tarfile.DIRTYPE)
        elif first is not None:
            self._put(name, path, info, tarfile.LNKTYPE, link=first)
        elif kind == stat.S_IFREG:
            self._put_file(name, path, info)
        elif kind == stat.S_IFLNK:
            self._put(name, path, info, tarfile.SYMTYPE, link=os.readlink(path))
        else:
            self._put(name, path, info, _NODES[kind])
        if info.st_nlink > 1 and kind != stat.S_IFDIR:
            self._links.setdefault((info.st_dev, info.st_ino), name)

    def white_out(self, name: str) -> None:
        """Write the mark that says ``name`` is gone."""
        self._add_parents(name)
        parent, _, base = name.rpartition("/")
        self._mark(f"{parent}/{WHITEOUT}{base}" if parent else WHITEOUT + base)

    def opaque(self, name: str) -> None:
        """Write the mark that hides what lower layers have in directory ``name``."""
        self._mark(f"{name}/{OPAQUE}")

    def _mark(self, name: str) -> None:
        self._out.write(tarhead.header(tarhead.Member(name, tarfile.REGTYPE, 0o644)))

    def _add_parents(self, name: str) -> None:
        parent = name.rpartition("/")[0]
        if parent not in self._parents:
            self._add_parents(parent)
            path = f"{self._root}/{parent}"
            self._add(parent, path, os.lstat(path))

    def _put(self, name: str, path: str | int, info: os.stat_result, kind: bytes, link: str = "") -> None:
        mtime = info.st_mtime_ns
        if self._epoch is not None and mtime >= self._epoch:
            mtime = self._epoch
        size = info.st_size if kind == tarfile.REGTYPE else 0
        node = kind in (tarfile.CHRTYPE, tarfile.BLKTYPE)
        device = (os.major(info.st_rdev), os.minor(info.st_rdev)) if node else (0, 0)
        member = tarhead.Member(name, kind, info.st_mode, info.st_uid, info.st_gid, size, mtime, link, device)
        # On a hard link too: docker changes its owner, by which the kernel drops capabilities that no entry gives back.
        self._out.write(tarhead.header(member, _xattr_records(path)))

    def _put_file(self, name: str, path: str, info: os.stat_result) -> None:
        # A container that runs on may have put a link, or a pipe that nobody writes into, in the file's place.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._put(name, fd, info, tarfile.REGTYPE)
            left = info.st_size
            while left:
                data = os.read(fd, min(_PIECE, left))
                if not data:
                    data = bytes(min(_PIECE, left))  # the file shrank under us; the header's size is a promise
                self._out.write(data)
                left -= len(data)
            self._out.write(tarhead.padding(info.st_size))
        finally:
            os.close(fd)


def _xattr_records(path: str | int) -> dict[str, str]:
    """Extended attributes as pax records (``SCHILY.xattr.NAME``), those of the overlay and of the system left out."""
    records = {}
    follow = isinstance(path, int)  # a descriptor is no link
    for name in os.listxattr(path, follow_symlinks=follow):
        if not name.startswith((*_OVERLAY_MARKS, "system.")):
            value = os.getxattr(path, name, follow_symlinks=follow)
            records[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    return records


def _names(directory: str) -> list[str]:
    return sorted(os.listdir(directory))


def write_upper(upper: str, out: DigestingWriter, epoch: int | None) -> None:
    """The layer that an overlay's upper directory stands for."""
    writer = LayerWriter(upper, out, epoch)
    root = upper.rstrip("/")

    def walk(prefix: str) -> None:
        for base in _names(f"{root}/{prefix}"):
            name = f"{prefix}/{base}" if prefix else base
            path = f"{root}/{name}"
            info = os.lstat(path)
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                writer.white_out(name)
                continue
            writer.add(name, info)
            if stat.S_ISDIR(info.st_mode):
                if _is_opaque(path):
                    writer.opaque(name)
                walk(name)

    walk("")


def _is_opaque(path: str) -> bool:
    names = os.listxattr(path, follow_symlinks=False)
    return any(
        mark + "opaque" in names and os.getxattr(path, mark + "opaque", follow_symlinks=False) == b"y"
        for mark in _OVERLAY_MARKS
    )


def write_changes(left: str, right: str, out: DigestingWriter, epoch: int | None) -> None:
    """The layer that turns tree ``left`` into tree ``right``."""
    writer = LayerWriter(right, out, epoch)
    for name, exists in _changes(left, right, ""):
        if exists:
            writer.add(name)
        else:
            writer.white_out(name)


def _changes(left: str | None, right: str, prefix: str) -> Iterator[tuple[str, bool]]:
    """(name, whether it still exists); ``left`` is None below what was no directory there, so no link is followed."""
    old = set(_names(os.path.join(left, prefix))) if left is not None else set()
    new = set(_names(os.path.join(right, prefix)))
    for base in sorted(old | new):
        name = f"{prefix}/{base}" if prefix else base
        if base not in new:
            yield name, False
            continue
        known = left is not None and base in old
        if left is None or not known or not _same(os.path.join(left, name), os.path.join(right, name)):
            yield name, True
        if _is_directory(os.path.join(right, name)):
            below = left if left is not None and known and _is_directory(os.path.join(left, name)) else None
            yield from _changes(below, right, name)


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _same(left: str, right: str) -> bool:
    """Equal by metadata; equal size and time stand for equal data, as in rsync and peers."""
    a, b = os.lstat(left), os.lstat(right)
    if (a.st_mode, a.st_uid, a.st_gid, a.st_rdev) != (b.st_mode, b.st_uid, b.st_gid, b.st_rdev):
        return False
    if _xattrs(left) != _xattrs(right):
        return False
    if stat.S_ISREG(a.st_mode):
        return (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)
    return not stat.S_ISLNK(a.st_mode) or os.readlink(left) == os.readlink(right)


def _xattrs(path: str) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {n: os.getxattr(path, n, follow_symlinks=False) for n in names if not n.startswith(_OVERLAY_MARKS)}
