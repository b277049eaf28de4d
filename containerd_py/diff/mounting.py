"""mount(2) for the layer worker, without protobuf: the few calls a child needs between fork and chroot.

Rule: called only after ``private_namespace``, so nothing outlives the process.
Sources: mount(2), unshare(2), syncfs(2).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from oci.errors import Code, GantryError

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE, _MS_BIND, _MS_REMOUNT = 0x4000, 0x40000, 0x1000, 0x20
_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "bind": _MS_BIND, "rbind": _MS_BIND | _MS_REC}
_MNT_DETACH = 2
_PAGE = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.syncfs.argtypes = (ctypes.c_int,)


def _check(result: int, what: str) -> None:
    if result == 0:
        return
    number = ctypes.get_errno()
    error = GantryError(
        f"layer worker: {what}: {os.strerror(number)}",
        hint="unpacking needs CAP_SYS_ADMIN (or a user namespace)" if number == 1 else "",
    )
    error.code = Code.PERMISSION_DENIED if number == 1 else Code.INTERNAL
    raise error


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    what = f"mount {kind or 'flags'} on {target}"
    if len(os.fsencode(data)) >= _PAGE:
        raise GantryError(f"layer worker: {what}: {len(data)} bytes of options do not fit in a page: too many layers")
    arguments = (os.fsencode(x) for x in (source, target, kind))
    _check(_libc.mount(*arguments, flags, os.fsencode(data) or None), what)


def private_namespace() -> None:
    """Leave the host's mount namespace; no mount made from here on is seen by anybody else."""
    _check(_libc.unshare(_CLONE_NEWNS), "new mount namespace")
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE, "")


def mount_all(mounts: list[list[Any]], target: str) -> None:
    """Make containerd's mounts (``[type, source, target, options]``) below ``target``, in order."""
    for kind, source, below, options in mounts:
        flags = 0
        data = []
        for option in options:
            if option in _FLAGS:
                flags |= _FLAGS[option]
            elif option not in ("rw", "defaults"):
                data.append(option)
        place = f"{target}/{below.lstrip('/')}" if below else target
        if kind == "bind":
            flags |= _MS_BIND
        flags_now = flags & ~1 if flags & _MS_BIND else flags
        if sum(map(len, data)) + len(data) >= _PAGE - 1:
            _mount_from_below(source, os.path.abspath(place), kind, flags_now, data)
        else:
            _mount(source, place, kind, flags_now, ",".join(data))
        if flags & _MS_BIND and flags & 1:
            _mount("none", place, "", _MS_REMOUNT | _MS_BIND | 1, "")


def _mount_from_below(source: str, target: str, kind: str, flags: int, data: list[str]) -> None:
    """Many layers: name them relative to the directory they share, as mount(2) takes one page of options."""
    lower = next((o for o in data if o.startswith("lowerdir=")), "lowerdir=/")[len("lowerdir=") :].split(":")
    shared = os.path.commonpath(lower)
    short = "lowerdir=" + ":".join(os.path.relpath(path, shared) for path in lower)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(shared)
        options = [short if o.startswith("lowerdir=") else o for o in data]
        _mount(source, target, kind, flags, ",".join(options))
    finally:
        os.fchdir(here)
        os.close(here)


def unmount(path: str) -> None:
    """Detach what is mounted on ``path``."""
    _check(_libc.umount2(os.fsencode(path), _MNT_DETACH), f"unmount {path}")


def sync_file_system(path: str) -> None:
    """Write everything of the file system under ``path`` to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _check(_libc.syncfs(fd), "syncfs")
    finally:
        os.close(fd)
