"""mount(2) and loop devices, for file systems that outlive the call.

Rule: nothing here knows why. Sources: mount(2), mount(8) for the words, loop(4).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator

from oci import errors

MS_REMOUNT, MS_BIND, MS_REC = 0x20, 0x1000, 0x4000
_SET = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "mand": 64, "dirsync": 128, "noatime": 1024,
    "nodiratime": 2048, "bind": MS_BIND, "rbind": MS_BIND | MS_REC, "relatime": 1 << 21, "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}  # fmt: skip
_CLEAR = {
    "rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "async": "sync", "nomand": "mand",
    "atime": "noatime", "diratime": "nodiratime", "norelatime": "relatime", "nostrictatime": "strictatime",
    "nolazytime": "lazytime",
}  # fmt: skip
_IGNORED = ("defaults", "auto", "noauto", "loop")
_PAGE = 4096

_LOOP_CONTROL = "/dev/loop-control"
_CTL_GET_FREE, _CONFIGURE, _SET_STATUS, _GET_STATUS = 0x4C82, 0x4C0A, 0x4C04, 0x4C05
_READ_ONLY, _AUTOCLEAR = 1, 4
_INFO = struct.Struct("=QQQQQIIII64s64s32sQQ")
_FLAGS_FIELD = 8
_CONFIG = struct.Struct(f"=II{_INFO.size}s64x")
_ATTEMPTS = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def mount(kind: str, source: str, target: str, options: Iterable[str]) -> None:
    """Mount ``source`` on ``target``. Raises ``InvalidArgument`` with what the kernel says."""
    options = tuple(options)
    flags, data = _words(options)
    if kind == "bind":
        flags |= MS_BIND
    if "loop" in options:
        with attached(source, read_only=bool(flags & 1)) as device:
            _call(kind, device, target, flags, data)
            return
    _call(kind, source, target, flags & (MS_BIND | MS_REC) if flags & MS_BIND else flags, data)
    if flags & MS_BIND and flags & ~(MS_BIND | MS_REC):
        try:
            _call("", "none", target, flags | MS_REMOUNT, "")
        except BaseException:
            unmount(target)
            raise


def _words(options: Iterable[str]) -> tuple[int, str]:
    flags, data = 0, []
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_SET[_CLEAR[option]]
        elif option not in _IGNORED and not option.startswith("X-"):
            data.append(option)
    return flags, ",".join(data)


def _call(kind: str, source: str, target: str, flags: int, data: str) -> None:
    if len(os.fsencode(data)) >= _PAGE:
        raise errors.InvalidArgument(f"mount of {source}: {len(data)} bytes of options do not fit in a page")
    arguments = (os.fsencode(word) for word in (source, target, kind))
    if _libc.mount(*arguments, flags, os.fsencode(data) or None) != 0:
        number = ctypes.get_errno()
        raise errors.InvalidArgument(
            f"mount of {source} ({kind or 'bind'}, {data or 'no options'}) on {target}: {os.strerror(number)}",
            hint="the daemon needs CAP_SYS_ADMIN" if number == errno.EPERM else "the kernel's log may tell more",
        )


def unmount(target: str) -> None:
    """Unmount ``target``; what is not mounted (any more) is no error. Raises ``FailedPrecondition`` for a busy one."""
    if _libc.umount2(os.fsencode(target), 0) != 0:
        number = ctypes.get_errno()
        if number == errno.EBUSY:
            raise errors.FailedPrecondition(
                f"{target} is busy", hint="somebody has a file open in it, or mounted on it"
            )
        if number not in (errno.EINVAL, errno.ENOENT):
            raise OSError(number, os.strerror(number), target)


def is_mounted(target: str) -> bool:
    """Whether something is mounted on ``target``."""
    try:
        above = os.stat(os.path.dirname(target))
        here = os.stat(target)
    except OSError:
        return False
    if here.st_dev != above.st_dev:
        return True
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return any(line.split()[4] == target for line in table)


@contextlib.contextmanager
def attached(path: str, *, read_only: bool = False) -> Iterator[str]:
    """A loop device of the file ``path``. It goes with its last user: who mounts it meanwhile is one."""
    device, name = _attach(path, read_only=read_only)
    try:
        yield name
    finally:
        os.close(device)


def _attach(path: str, *, read_only: bool) -> tuple[int, str]:
    mode = os.O_RDONLY if read_only else os.O_RDWR
    try:
        backing = os.open(path, mode | os.O_CLOEXEC)
    except OSError as error:
        raise errors.InvalidArgument(f"loop device of {path}: {error.strerror}") from error
    flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0)
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(path)[:63], b"", b"", 0, 0)
    try:
        for _ in range(_ATTEMPTS):
            with open(_LOOP_CONTROL, "rb+", buffering=0) as control:
                name = f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}"
            device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(backing, 0, info))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else has just taken it
                    raise errors.InvalidArgument(f"loop device of {path}: {error.strerror}") from error
            else:
                return device, name
    finally:
        os.close(backing)
    raise errors.ResourceExhausted(f"loop device of {path}: none is free")


def keep_loop(path: str, link: str, *, read_only: bool = False) -> None:
    """A loop device of ``path`` that stays without a user, at the symbolic link ``link``."""
    with attached(path, read_only=read_only) as name:
        os.symlink(name, link)
        _set_autoclear(name, wanted=False)


def release_loop(link: str) -> None:
    """Let the loop device at ``link`` go with its last user; without a link it has gone already."""
    try:
        name = os.readlink(link)
    except FileNotFoundError:
        return
    with contextlib.suppress(OSError):
        _set_autoclear(name, wanted=True)
    os.unlink(link)


def _set_autoclear(name: str, *, wanted: bool) -> None:
    device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
    try:
        fields = list(_INFO.unpack(fcntl.ioctl(device, _GET_STATUS, bytes(_INFO.size))))
        fields[_FLAGS_FIELD] = fields[_FLAGS_FIELD] & ~_AUTOCLEAR | (_AUTOCLEAR if wanted else 0)
        fcntl.ioctl(device, _SET_STATUS, _INFO.pack(*fields))
    finally:
        os.close(device)
