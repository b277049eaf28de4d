"""Keeping the interpreter's file out of the containers' reach (CVE-2019-5736 and its relatives).

Rule: whoever starts a process in a container runs from a file that cannot be written through ``/proc/<pid>/exe``: a
sealed memory file (the zygote does that) or, here, the interpreter on a detached read-only mount. The command therefore
executes itself once more; where it may not make such a mount, it falls back to a sealed copy.
"""

from __future__ import annotations

import fcntl
import os
import sys

from runc_py import syscalls
from runc_py.errors import RuntimeFailure

_MARK = "_RUNC_PY_SEALED"
_F_GET_SEALS, _F_ADD_SEALS, _SEALS = 1034, 1033, 0xF
_START = "import sys; sys.argv[0] = {name!r}; sys.path[:0] = [{path!r}]; from runc_py.main import main; main()"


def is_sealed() -> bool:
    """Whether this process's executable is on a read-only mount or is a sealed memory file."""
    fd = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
            return True
        try:
            return fcntl.fcntl(fd, _F_GET_SEALS) & _SEALS == _SEALS
        except OSError:
            return False
    finally:
        os.close(fd)


def ensure_sealed() -> None:
    """Return when sealed; otherwise execute this command again from a protected interpreter."""
    if is_sealed():
        os.environ.pop(_MARK, None)
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
    arguments = [sys.executable, "-I", "-S", "-c", _START.format(name=sys.argv[0], path=package), *sys.argv[1:]]
    os.execve(f"/proc/self/fd/{fd}", arguments, os.environ)  # noqa: S606 -- the same program again, no shell


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
    fcntl.fcntl(copy, _F_ADD_SEALS, _SEALS)
    return copy
