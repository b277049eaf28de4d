"""Sub-directories of volumes as mount sources (``--mount …,volume-subpath=dir``).

Rule: a sub-path is resolved inside its volume and bound to a place of its own until the container has it, so that who
writes in the volume cannot lead the mount out of it. What a daemon that died left there goes at the next start.
Source: openat2(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import tempfile
from collections.abc import Iterable

import msgspec

from engine.containers.model import MountPoint
from engine.containers.volume_mounts import bind_mount, unmount_volume
from oci.errors import InvalidArgument, NotFound

_SYS_OPENAT2 = 437
_RESOLVE_IN_ROOT, _RESOLVE_NO_MAGICLINKS = 0x10, 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.syscall.restype = ctypes.c_long


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def check(subpath: str) -> str:
    """Raises ``InvalidArgument`` unless ``subpath`` is relative and stays inside the volume."""
    if subpath.startswith("/") or ".." in subpath.split("/") or "\0" in subpath:
        raise InvalidArgument(
            'invalid mount config for type "volume": subpath must be a relative path within the volume'
        )
    return subpath


class Subpaths:
    """The mounts of a container with sub-paths resolved; a context manager that keeps them bound below ``place``."""

    def __init__(self, points: Iterable[MountPoint], place: str) -> None:
        self._points = points
        self._place = place
        self._open = contextlib.ExitStack()

    def __enter__(self) -> tuple[MountPoint, ...]:
        """Raises ``NotFound`` naming the volume and the path that is not in it."""
        with contextlib.ExitStack() as opening:
            found = tuple(self._resolved(point, opening) if point.subpath else point for point in self._points)
            self._open = opening.pop_all()
        return found

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _resolved(self, point: MountPoint, opening: contextlib.ExitStack) -> MountPoint:
        try:
            bound = bind_inside(point.source, point.subpath, self._place, opening)
        except OSError as error:
            raise NotFound(
                f"failed to mount subpath {point.subpath} of volume {point.name}: {error.strerror}",
                hint="the path must be in the volume when the container starts",
            ) from error
        return msgspec.structs.replace(point, source=bound)


def bind_inside(root: str, path: str, place: str, opening: contextlib.ExitStack) -> str:
    """Where ``path`` of ``root`` is bound, below ``place``, until ``opening`` is closed. Raises ``OSError``."""
    descriptor = open_inside(root, path)
    try:
        os.makedirs(place, mode=0o700, exist_ok=True)
        directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        target = tempfile.mkdtemp(dir=place) if directory else tempfile.mkstemp(dir=place)[1]
        opening.callback(_discard, target)
        bind_mount(f"/proc/self/fd/{descriptor}", target)
    finally:
        os.close(descriptor)
    return target


def _discard(target: str) -> None:
    unmount_volume(target)
    with contextlib.suppress(OSError):
        os.rmdir(target) if os.path.isdir(target) else os.unlink(target)


def sweep(place: str) -> None:
    """Take away what a daemon that died has left below ``place``. Idempotent."""
    for name in os.listdir(place) if os.path.isdir(place) else ():
        _discard(f"{place}/{name}")


def open_inside(root: str, path: str) -> int:
    """An O_PATH descriptor of ``path`` with ``root`` as its root directory. Raises ``OSError``."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _How(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        result = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        return int(result)
    finally:
        os.close(directory)
