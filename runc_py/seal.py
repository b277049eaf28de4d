"""Keeping the interpreter's file out of the containers' reach (CVE-2019-5736 and its relatives).

Rule: whoever starts a process in a container runs from a file that cannot be written through ``/proc/<pid>/exe``: a
sealed memory file (the zygote does that) or, here, the interpreter on a detached read-only mount. Where the kernel lets
it, the command exchanges its executable for that one while it runs (PR_SET_MM_MAP, which CRIU uses); else it executes
itself once more, from the mount or from a sealed copy. What ``/proc/self/exe`` then is, is looked at, never assumed.
"""

from __future__ import annotations

import sys

from runc_py import syscalls
from runc_py.errors import RuntimeFailure
from runc_py.light import os

_MARK = "_RUNC_PY_SEALED"
_SMALL = 1 << 18
_F_GET_SEALS, _F_ADD_SEALS, _SEALS = 1034, 1033, 0xF
_START = "import sys; sys.argv[0] = {name!r}; sys.path[:0] = [{path!r}]; from runc_py.main import main; main()"


def is_sealed() -> bool:
    """Whether this process's executable is on a read-only mount or is a sealed memory file."""
    fd = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
            return True
        try:
            return syscalls.fcntl(fd, _F_GET_SEALS) & _SEALS == _SEALS
        except OSError:
            return False
    finally:
        os.close(fd)


def ensure_sealed() -> None:
    """Return when sealed; otherwise execute this command again from a protected interpreter."""
    if is_sealed():
        os.environ.pop(_MARK, None)
        return
    # Started as the command is (see runc-py.sh): nothing of the caller's environment decided what was imported.
    if sys.flags.isolated and sys.flags.no_site and _exchanged() and is_sealed():
        return
    if os.environ.get(_MARK):
        raise RuntimeFailure("cannot protect the interpreter: neither a read-only mount nor a sealed copy of it holds")
    os.environ[_MARK] = "1"
    try:
        fd = _read_only_mount()
    except OSError:
        fd = _sealed_copy()
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # -I -S: no site-packages, no user files, nothing of the caller's environment decides what is imported.
    arguments = [
        sys.executable,
        "-X",
        "utf8",
        "-I",
        "-S",
        "-c",
        _START.format(name=sys.argv[0], path=package),
        *sys.argv[1:],
    ]
    os.execve(f"/proc/self/fd/{fd}", arguments, os.environ)


def _exchanged() -> bool:
    """Make the interpreter on a read-only mount the executable of this process, without starting again.

    For that, no page of the host's file may stay mapped: each becomes anonymous memory of the same content. That is
    right only for the few pages of an interpreter whose code is in ``libpython``; a larger one would go on changing its
    data while it is copied.
    """
    try:
        mappings = _mappings_of(os.readlink("/proc/self/exe"))
        if not mappings or sum(end - start for start, end, _ in mappings) > _SMALL:
            return False
        mount = _read_only_mount()
        executable = os.open(f"/proc/self/fd/{mount}", os.O_RDONLY | os.O_CLOEXEC)
        for start, end, protection in mappings:
            syscalls.make_anonymous(start, end - start, protection)
        syscalls.set_executable(executable, _own_stat())
    except OSError:
        return False
    os.close(executable)
    os.close(mount)
    return True


def _mappings_of(path: str) -> list[tuple[int, int, int]]:
    """(start, end, protection) of what this process has mapped of a file (proc_pid_maps(5))."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        rows = [line.rstrip("\n").split(None, 5) for line in file if line.rstrip("\n").endswith(path)]
    found = []
    for row in rows:
        if row[5] == path:
            start, end = (int(part, 16) for part in row[0].split("-"))
            found.append(
                (start, end, sum(bit for letter, bit in zip(row[1], (1, 2, 4), strict=False) if letter != "-"))
            )
    return found


def _own_stat() -> list[int]:
    """The numbers of ``/proc/self/stat`` at their places, counted from 0; name and state count as 0."""
    with open("/proc/self/stat", "rb") as file:
        text = file.read()
    return [0, 0, 0, *map(int, text[text.rindex(b")") + 2 :].split()[1:])]


def _read_only_mount() -> int:
    path = os.path.realpath("/proc/self/exe")
    mount = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
    syscalls.mount_setattr(mount, set_=syscalls.MOUNT_ATTR_RDONLY)
    return mount


def _sealed_copy() -> int:
    source = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    copy = os.memfd_create("runc-py", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    size = os.fstat(source).st_size
    done = 0
    while done < size:
        done += os.sendfile(copy, source, done, size - done)
    os.close(source)
    syscalls.fcntl(copy, _F_ADD_SEALS, _SEALS)
    return copy
