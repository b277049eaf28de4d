"""Notices when the host gets other DNS servers, so that running containers can follow.

Rule: any event in a directory where the host's resolv.conf may be leads to one look at it; nobody polls. Such files are
replaced by rename, written in place or reached through links, by whoever manages the host's network (inotify(7)).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable, Iterable

import structlog

log = structlog.get_logger()

IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE = 0x2, 0x8, 0x80, 0x100
IN_DELETE_SELF, IN_MOVE_SELF = 0x400, 0x800
_OF_DIRECTORIES = IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE
_OF_FILES = IN_MODIFY | IN_CLOSE_WRITE | IN_DELETE_SELF | IN_MOVE_SELF
BUFFER = 1 << 16
SETTLE = 0.1
"""Seconds after an event: a file that is written in place is empty first."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_init1.argtypes = [ctypes.c_int]
_libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]


class FileWatcher:
    """Calls ``changed`` when ``look`` sees something else after an event about ``paths`` or what they link to."""

    def __init__(self, paths: Iterable[str], look: Callable[[], object], changed: Callable[[], None]) -> None:
        self._paths = tuple(paths)
        self._look = look
        self._changed = changed
        self._seen: object = None
        self._descriptor = -1
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch. Idempotent; without inotify nothing is noticed, which is logged."""
        if self._descriptor >= 0:
            return
        descriptor = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if descriptor < 0:
            cause = os.strerror(ctypes.get_errno())
            log.warning("running containers do not follow changes of the host's resolv.conf", cause=cause)
            return
        self._descriptor = descriptor
        self._watch()
        self._seen = self._look()
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def stop(self) -> None:
        """Watch no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _watch(self) -> None:
        """Watch what the paths are now; watching the same thing again changes nothing."""
        for path in self._paths:
            real = os.path.realpath(path)
            for directory in {os.path.dirname(path), os.path.dirname(real)}:
                _libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _OF_DIRECTORIES)
            # A file bound over the path is not written to in that directory.
            _libc.inotify_add_watch(self._descriptor, os.fsencode(real), _OF_FILES)

    def _read(self) -> None:
        try:
            os.read(self._descriptor, BUFFER)
        except BlockingIOError:
            return
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE, self._settled)

    def _settled(self) -> None:
        self._timer = None
        self._watch()
        seen, self._seen = self._seen, self._look()
        if seen != self._seen:
            self._changed()
