"""Pseudo terminals of containers.

Rule: the pty comes from the *container's* devpts and its slave from the master by TIOCGPTPEER, never by a path; both
are verified, because the rootfs may have put anything at ``/dev/pts`` (CVE-2025-52565).
"""

from __future__ import annotations

import fcntl
import sys

from runc_py import syscalls
from runc_py.errors import RuntimeFailure
from runc_py.light import os
from runc_py.paths import Root, is_device

TIOCSCTTY = 0x540E
TIOCSWINSZ = 0x5414
TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441


def open_terminal(root: Root, size: tuple[int, int] | None) -> tuple[int, int]:
    """A new pty of the container: (master, slave); ``size`` is (rows, columns)."""
    try:
        master = root.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        raise RuntimeFailure(f"cannot open a terminal: /dev/pts/ptmx: {error.strerror}") from error
    if syscalls.filesystem_type(master) != syscalls.DEVPTS_SUPER_MAGIC or not is_device(master, 5, 2):
        os.close(master)
        raise RuntimeFailure("cannot open a terminal: /dev/pts/ptmx of the container is not a pty multiplexer")
    fcntl.ioctl(master, TIOCSPTLCK, bytes(4))
    slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if size is not None:
        resize(master, *size)
    return master, slave


def resize(fd: int, rows: int, columns: int) -> None:
    """Set the window size of a terminal."""
    fcntl.ioctl(fd, TIOCSWINSZ, b"".join([(n & 0xFFFF).to_bytes(2, sys.byteorder) for n in (rows, columns, 0, 0)]))


def bind_console(root: Root, slave: int) -> None:
    """Make ``/dev/console`` the container's terminal."""
    directory = root.make_directory("/dev")
    try:
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open("console", flags, 0o620, dir_fd=directory))
        except FileExistsError:
            pass  # an image may ship the file; a symlink is refused below
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
        target = syscalls.openat2(directory, "console", os.O_PATH, resolve)
    finally:
        os.close(directory)
    mount = syscalls.open_tree(slave, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
    syscalls.move_mount(mount, target, "/dev/console")
    os.close(mount)
    os.close(target)


def control(slave: int) -> None:
    """Make ``slave`` the controlling terminal of this session and its standard streams."""
    fcntl.ioctl(slave, TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(slave, number)
    if slave > 2:
        os.close(slave)


def size_of(process: dict[str, object], wanted: tuple[int, int] | None) -> tuple[int, int] | None:
    """(rows, columns) for a process: what the caller wants, else ``process.consoleSize``."""
    if wanted is not None:
        return wanted
    size = process.get("consoleSize")
    if isinstance(size, dict) and (size.get("height") or size.get("width")):
        return int(size.get("height") or 0), int(size.get("width") or 0)
    return None
