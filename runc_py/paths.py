"""Paths inside a rootfs, reached through descriptors only.

Rule: a path from a spec or an image is never handed to the kernel as a string from the host's root. It is resolved
below the rootfs descriptor by ``openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)``; what is missing is made component
by component, relative to a directory that was resolved that way.
"""

from __future__ import annotations

import errno

from runc_py import syscalls
from runc_py.errors import RuntimeFailure
from runc_py.light import os, stat, suppress

IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
MAX_LINKS = 40


class Root:
    """A rootfs: ``fd`` is an ``O_PATH`` descriptor of its top directory."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def open(self, path: str, flags: int = os.O_PATH, resolve: int = 0) -> int:
        """Open ``path`` as the container would see it. Raises OSError."""
        return syscalls.openat2(self.fd, path.lstrip("/") or ".", flags, IN_ROOT | resolve)

    def open_or_none(self, path: str, flags: int = os.O_PATH) -> int | None:
        """Like ``open``; None when there is no such file."""
        try:
            return self.open(path, flags)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def make_directory(self, path: str, mode: int = 0o755) -> int:
        """An ``O_PATH`` descriptor of directory ``path``, made with its missing parents."""
        try:
            return self.open(path, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            return self._make_last(path, mode) or self._make_components(path, mode)

    def _make_last(self, path: str, mode: int) -> int:
        """The usual case: only the last component is missing. 0 when it is another."""
        parent, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            return 0
        directory = self.open_or_none(parent or "/", os.O_PATH | os.O_DIRECTORY)
        if directory is None:
            return 0
        try:
            return _make_one(directory, name, mode) if _link_target(directory, name) is None else 0
        finally:
            os.close(directory)

    def make_file(self, path: str, mode: int = 0o644) -> int:
        """An ``O_PATH`` descriptor of file ``path``, made empty with its missing parents."""
        found = self.open_or_none(path)
        if found is not None:
            return found
        path = self._follow_dangling(path)
        parent, name = os.path.split(path.rstrip("/"))
        directory = self.make_directory(parent or "/")
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, mode, dir_fd=directory))
            return syscalls.openat2(directory, name, os.O_PATH, syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS)
        finally:
            os.close(directory)

    def _follow_dangling(self, path: str) -> str:
        """Where a dangling symlink at ``path`` points to, lexically, or ``path`` itself."""
        for _ in range(MAX_LINKS):
            parent, name = os.path.split(path.rstrip("/"))
            directory = self.open_or_none(parent or "/", os.O_PATH | os.O_DIRECTORY)
            if directory is None:
                return path
            try:
                target = os.readlink(name, dir_fd=directory)
            except OSError:
                return path
            finally:
                os.close(directory)
            path = os.path.normpath(os.path.join("/", parent, target))
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

    def _make_components(self, path: str, mode: int) -> int:
        pending = [part for part in path.split("/") if part not in ("", ".")]
        done: list[str] = []
        current = self.open("/", os.O_PATH | os.O_DIRECTORY)
        links = 0
        try:
            while pending:
                name = pending.pop(0)
                candidate = "/".join([*done, name])
                try:
                    following = self.open(candidate, os.O_PATH | os.O_DIRECTORY)
                except FileNotFoundError:
                    if name == "..":
                        raise RuntimeFailure(f'refusing to make "{path}": ".." below a missing directory') from None
                    target = _link_target(current, name)
                    if target is not None:
                        links += 1
                        if links > MAX_LINKS:
                            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                        if target.startswith("/"):
                            done = []
                        pending = [part for part in target.split("/") if part not in ("", ".")] + pending
                        os.close(current)
                        current = self.open("/".join(done) or "/", os.O_PATH | os.O_DIRECTORY)
                        continue
                    following = _make_one(current, name, mode)
                os.close(current)
                current = following
                done.append(name)
        except BaseException:
            os.close(current)
            raise
        return current


def _link_target(directory: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return None


def _make_one(directory: int, name: str, mode: int) -> int:
    with suppress(FileExistsError):  # somebody else's: the open below refuses anything but a directory
        os.mkdir(name, mode, dir_fd=directory)
    resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
    return syscalls.openat2(directory, name, os.O_PATH | os.O_DIRECTORY, resolve)


def real_path(fd: int) -> str:
    """What the kernel calls the file ``fd`` (for checks and messages, never to be opened again)."""
    return os.readlink(f"/proc/self/fd/{fd}")


def is_directory(fd: int) -> bool:
    """Whether the file of ``fd`` is a directory."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def is_device(fd: int, major: int, minor: int) -> bool:
    """Whether the file of ``fd`` is that character device: a file merely called ``/dev/null`` may be anything."""
    info = os.fstat(fd)
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(major, minor)


def read_regular(fd: int, limit: int = 1 << 20) -> bytes:
    """At most ``limit`` bytes of a regular file; empty for anything else (a FIFO would block for ever)."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return b""
    chunks = []
    while limit > 0 and (chunk := os.read(fd, min(limit, 65536))):
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)
