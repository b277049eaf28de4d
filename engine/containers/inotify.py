"""Kernel notices of growing logs: one inotify descriptor for the engine, any number of sleepers.

Rule: a notice only says "look again". Who sleeps looks first, so that nothing between look and sleep is missed.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct

IN_MODIFY = 0x2
IN_CREATE = 0x100
IN_IGNORED = 0x8000
_HEAD = struct.Struct("iIII")
_READ = 64 << 10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


class DirectoryWatch:
    """Wakes ``asyncio.Event`` objects when a file called ``name`` in their directory is made or written."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._fd = -1
        self._sleepers: dict[int, set[asyncio.Event]] = {}
        self._by_path: dict[str, int] = {}

    def add(self, directory: str, wake: asyncio.Event) -> None:
        """Set ``wake`` from now on; raises ``OSError`` (no directory, too many watches)."""
        if self._fd < 0:
            self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")
            asyncio.get_running_loop().add_reader(self._fd, self._ready)
        watch = self._by_path.get(directory)
        if watch is None:
            path = os.fsencode(directory)
            watch = _checked(_libc.inotify_add_watch(self._fd, path, IN_MODIFY | IN_CREATE), f"watch {directory}")
            self._by_path[directory] = watch
        self._sleepers.setdefault(watch, set()).add(wake)

    def remove(self, directory: str, wake: asyncio.Event) -> None:
        """Undo ``add``. Idempotent."""
        watch = self._by_path.get(directory)
        if watch is None:
            return
        sleepers = self._sleepers.get(watch, set())
        sleepers.discard(wake)
        if not sleepers:
            del self._by_path[directory]
            self._sleepers.pop(watch, None)
            _libc.inotify_rm_watch(self._fd, watch)

    def _ready(self) -> None:
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, at)
            name = data[at + _HEAD.size : at + _HEAD.size + length].rstrip(b"\0")
            at += _HEAD.size + length
            if name == self._name or mask & IN_IGNORED:
                for wake in self._sleepers.get(watch, ()):
                    wake.set()

    def close(self) -> None:
        """Forget every sleeper and give the descriptor back."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._sleepers.clear()
        self._by_path.clear()
