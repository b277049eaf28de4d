"""Writes the members of a layer into the root directory of this process (a chroot).

Rule: a name from the archive is cleaned to an absolute path and the kernel's chroot does the containing, symlinks
included; nothing here resolves paths by string. Sources: image-spec ``layer.md`` (whiteouts, opaque directories).
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import stat
from collections.abc import Callable

from oci import tar
from oci.errors import InvalidArgument, PermissionDenied

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_AUFS_META = ".wh..wh."
_OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")
"""Attributes that would redirect a lower layer's paths: never taken from an archive."""
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_QUIET_XATTR_ERRORS = frozenset({errno.ENOTSUP, errno.EPERM})


def clean(name: str) -> str:
    """``name`` as an absolute, normalized path; ``..`` cannot climb over the root."""
    return posixpath.normpath("/" + name.lstrip("/"))


class Applier:
    """Applies members one by one to ``/`` of this process. Call ``finish`` at the end."""

    def __init__(self, *, whiteouts: bool = True, chown: bool = True) -> None:
        """``whiteouts`` off treats ``.wh.`` names as ordinary files; ``chown`` off keeps our own ids."""
        self._whiteouts = whiteouts
        self._chown = chown
        self._directories: set[str] = {"/"}
        self._times: dict[str, int] = {}
        self._touched: set[str] = {"/"}
        self.entries = 0

    def apply(self, reader: tar.TarReader, entry: tar.Entry) -> None:
        """Write one member, whose data ``reader`` gives. Raises ``InvalidArgument`` for what a layer may not hold."""
        path = clean(entry.name)
        self.entries += 1
        parent, _, base = path.rpartition("/")
        self._make_parent(parent or "/")
        if self._whiteouts and base.startswith(WHITEOUT):
            self._white_out(parent, base)
            return
        self._touch(path)
        kind = entry.kind
        if path == "/" and kind != tar.DIRECTORY:
            raise InvalidArgument(f"archive member {entry.name!r} would replace the root directory")
        if kind in tar.REGULAR:
            self._file(reader, entry, path)
        elif kind == tar.DIRECTORY:
            self._directory(entry, path)
        elif kind == tar.SYMLINK:
            self._replacing(path, lambda: os.symlink(entry.link, path))
            self._attributes(entry, path)
        elif kind == tar.HARDLINK:
            self._hardlink(entry, path)
        elif kind in (tar.CHAR, tar.BLOCKDEV, tar.FIFO):
            self._node(entry, path)
        else:
            raise InvalidArgument(f"archive member {entry.name!r} has unknown type {chr(kind)!r}")

    def finish(self) -> None:
        """Set the directories' times, deepest first: writing into them changed these."""
        for path in sorted(self._times, reverse=True):
            _set_times(path, self._times[path])

    def _make_parent(self, path: str) -> None:
        if path in self._directories:
            return
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            if not os.path.isdir(path):  # follows links, as peers do; the chroot contains them
                self._remove(path)
                os.mkdir(path, 0o755)
        except FileNotFoundError:
            self._make_parent(path.rpartition("/")[0] or "/")
            os.mkdir(path, 0o755)
        except NotADirectoryError:
            self._make_parent(path.rpartition("/")[0] or "/")
            self._make_parent(path)
        self._directories.add(path)

    def _forget(self, path: str) -> None:
        """``path`` is no directory any more: drop what was remembered of it and below."""
        if path in self._directories:
            below = path + "/"
            self._directories = {d for d in self._directories if d != path and not d.startswith(below)}
            self._times = {d: t for d, t in self._times.items() if d != path and not d.startswith(below)}

    def _remove(self, path: str) -> None:
        self._forget(path)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):
            shutil.rmtree(path)

    def _replacing(self, path: str, create: Callable[[], None]) -> None:
        try:
            create()
        except FileExistsError:
            self._remove(path)
            create()

    def _white_out(self, parent: str, base: str) -> None:
        if base == OPAQUE:
            self._make_opaque(parent or "/")
            return
        if base.startswith(_AUFS_META):
            return  # bookkeeping of AUFS (hard link farm), no part of the layer
        victim = base[len(WHITEOUT) :]
        if victim in ("", ".", ".."):
            raise InvalidArgument(f"archive member {base!r} is a whiteout without a name")
        self._white_out_path(f"{parent}/{victim}")

    def _white_out_path(self, path: str) -> None:
        self._remove(path)

    def _touch(self, path: str) -> None:
        """Remember that this layer wrote ``path``, for opaque markers that come later."""
        while path and path not in self._touched:
            self._touched.add(path)
            path = path.rpartition("/")[0]

    def _make_opaque(self, directory: str) -> None:
        """Empty ``directory`` of what lower layers put there; what this layer wrote stays."""
        prefix = "" if directory == "/" else directory
        for name in os.listdir(directory):
            path = f"{prefix}/{name}"
            if path not in self._touched:
                self._remove(path)
            elif stat.S_ISDIR(os.lstat(path).st_mode):
                self._make_opaque(path)

    def _file(self, reader: tar.TarReader, entry: tar.Entry, path: str) -> None:
        try:
            fd = os.open(path, _NEW_FILE, entry.mode & 0o777)
        except (FileExistsError, IsADirectoryError):
            self._remove(path)
            fd = os.open(path, _NEW_FILE, entry.mode & 0o777)
        try:
            if entry.sparse is None:
                for piece in reader.data():
                    write_all(fd, piece)
            else:
                _write_sparse(fd, reader, entry)
            if self._chown and (entry.uid or entry.gid):
                os.fchown(fd, entry.uid, entry.gid)
            if entry.mode & 0o7000:
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                _set_xattrs(fd, entry)
            _set_times(fd, entry.mtime)
        finally:
            os.close(fd)

    def _directory(self, entry: tar.Entry, path: str) -> None:
        try:
            os.mkdir(path, entry.mode)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                self._remove(path)
                os.mkdir(path, entry.mode)
            else:
                _drop_xattrs(path, entry)
        self._directories.add(path)
        self._times[path] = entry.mtime
        if self._chown:
            os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        os.chmod(path, entry.mode)
        _set_xattrs(path, entry)

    def _hardlink(self, entry: tar.Entry, path: str) -> None:
        target = clean(entry.link)
        if target == path:
            return
        try:
            self._replacing(path, lambda: os.link(target, path, follow_symlinks=False))
        except FileNotFoundError:
            raise InvalidArgument(
                f"archive member {entry.name!r} is a hard link to {entry.link!r}, which is not in the image"
            ) from None

    def _node(self, entry: tar.Entry, path: str) -> None:
        kinds = {tar.CHAR: stat.S_IFCHR, tar.BLOCKDEV: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}
        device = os.makedev(entry.major, entry.minor)
        try:
            self._replacing(path, lambda: os.mknod(path, kinds[entry.kind] | entry.mode & 0o777, device))
        except PermissionError as error:
            raise PermissionDenied(
                f"cannot create device {entry.name!r}: {error.strerror}", hint="making device nodes needs CAP_MKNOD"
            ) from error
        self._attributes(entry, path)
        os.chmod(path, entry.mode)

    def _attributes(self, entry: tar.Entry, path: str) -> None:
        """Owner, extended attributes and times of what is not opened."""
        if self._chown and (entry.uid or entry.gid):
            os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        _set_xattrs(path, entry)
        _set_times(path, entry.mtime)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data``, however little the kernel takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _write_sparse(fd: int, reader: tar.TarReader, entry: tar.Entry) -> None:
    os.ftruncate(fd, entry.real_size)
    pieces = iter(entry.sparse or ())
    room = 0
    for data in reader.data():
        rest = data
        while rest:
            while not room:
                offset, room = next(pieces)
                os.lseek(fd, offset, os.SEEK_SET)
            part = rest[:room]
            write_all(fd, part)
            room -= len(part)
            rest = rest[len(part) :]


def _set_xattrs(target: int | str, entry: tar.Entry) -> None:
    for name, value in entry.xattrs.items():
        if name.startswith(_OVERLAY_XATTRS):
            continue
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _QUIET_XATTR_ERRORS:
                raise


def _drop_xattrs(path: str, entry: tar.Entry) -> None:
    """A directory's attributes are replaced, not merged: forget those the entry does not have."""
    for name in os.listxattr(path, follow_symlinks=False):
        kept = name in entry.xattrs or name.startswith(_OVERLAY_XATTRS)
        if not kept and name.startswith(("user.", "trusted.", "security.capability")):
            os.removexattr(path, name, follow_symlinks=False)


def _set_times(target: int | str, mtime: int) -> None:
    try:
        if isinstance(target, int):
            os.utime(target, ns=(mtime, mtime))
        else:
            os.utime(target, ns=(mtime, mtime), follow_symlinks=False)
    except (OverflowError, FileNotFoundError):
        return  # a time no file system holds; a directory that a later member removed
