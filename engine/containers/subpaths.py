"""Sub-directories of volumes as mount sources (``--mount …,volume-subpath=dir``).

Rule: a sub-path is resolved inside its volume and held open until it is mounted, so that who writes in the volume
cannot lead the mount out of it. Source: openat2(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable

import msgspec

from engine.containers.model import MountPoint
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
    """The mounts of a container with sub-paths resolved; a context manager that holds them open."""

    def __init__(self, points: Iterable[MountPoint]) -> None:
        self._points = points
        self._open = contextlib.ExitStack()

    def __enter__(self) -> tuple[MountPoint, ...]:
        """Raises ``NotFound`` naming the volume and the path that is not in it."""
        with contextlib.ExitStack() as opening:
            found = tuple(self._resolved(point, opening) if point.subpath else point for point in self._points)
            self._open = opening.pop_all()
        return found

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    @staticmethod
    def _resolved(point: MountPoint, opening: contextlib.ExitStack) -> MountPoint:
        try:
            descriptor = open_inside(point.source, point.subpath)
        except OSError as error:
            raise NotFound(
                f"failed to mount subpath {point.subpath} of volume {point.name}: {error.strerror}",
                hint="the path must be in the volume when the container starts",
            ) from error
        opening.callback(os.close, descriptor)
        return msgspec.structs.replace(point, source=f"/proc/{os.getpid()}/fd/{descriptor}")


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
