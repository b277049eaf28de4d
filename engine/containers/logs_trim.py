"""Keeps the raw log of a container with ``max-size`` small on disk.

Rule: offsets never change. What lies before the kept window becomes a hole (fallocate(2), punch); the ``window`` file
says where the log begins and is in place before anything is punched. Nothing is cut off that a driver has not sent yet.
"""

from __future__ import annotations

import bisect
import ctypes
import os

from engine.containers.logdrivers import Place
from engine.containers.logoptions import parse_size
from engine.containers.model import Container
from protos.rawlog import INDEX_NAME, RECORD_SIZE, STDERR, STDOUT, WINDOW_NAME, RawLog, Window
from protos.rawlog import encode_window as encoded

LOCAL_SIZE, LOCAL_FILES = "20m", "5"
"""What the ``local`` driver keeps unless told otherwise, as in Docker."""

_KEEP_SIZE_PUNCH_HOLE = 3
_LINE_SEARCH = 64 << 10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def kept_bytes(doc: Container) -> int:
    """Bytes of output that ``doc``'s log options ask to keep; 0 for no limit."""
    options = doc.host.log_config.config or {}
    local = doc.host.log_config.type == "local"
    size = options.get("max-size", LOCAL_SIZE if local else "")
    if not size:
        return 0
    return parse_size(size) * int(options.get("max-file", LOCAL_FILES if local else "1"))


def trim(directory: str, keep: int, sent: Place | None) -> bool:
    """Cut the log down to about ``keep`` bytes when it has grown a quarter beyond; whether it was cut. Blocking.

    ``sent`` is how far the driver got, None when there is no driver.
    """
    with RawLog(directory) as log:
        window = log.window()
        size = log.size(STDOUT) + log.size(STDERR)
        if not keep or size - window.stdout - window.stderr <= keep + keep // 4:
            return False
        new = _window(log, size - keep, window.record)
        if sent is not None and (new.stdout > sent.stdout or new.stderr > sent.stderr):
            return False
        if new.stdout < window.stdout or new.stderr < window.stderr or new.record <= window.record:
            return False
    _write(directory, new)
    for name, end in (("stdout", new.stdout), ("stderr", new.stderr), (INDEX_NAME, new.record * RECORD_SIZE)):
        _punch(f"{directory}/{name}", end)
    return True


def _window(log: RawLog, drop: int, first: int) -> Window:
    """The first window after ``drop`` bytes of output in which both streams begin with a whole line."""
    count = log.record_count()
    record = bisect.bisect_left(range(count), drop, lo=first, key=lambda number: sum(log.ends_before(number)))
    record = min(record, max(count - 1, 0))
    stdout, stderr = log.ends_before(record)
    return Window(record, _next_line(log, STDOUT, stdout), _next_line(log, STDERR, stderr))


def _next_line(log: RawLog, stream: int, offset: int) -> int:
    if offset and log.pread(stream, offset - 1, 1) != b"\n":
        newline = log.pread(stream, offset, _LINE_SEARCH).find(b"\n")
        if newline >= 0:
            return offset + newline + 1
    return offset


def _write(directory: str, window: Window) -> None:
    temporary = f"{directory}/.{WINDOW_NAME}"
    with open(temporary, "wb") as file:
        file.write(encoded(window))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, f"{directory}/{WINDOW_NAME}")


def _punch(path: str, end: int) -> None:
    """Give the blocks before ``end`` back. A file system without holes keeps them; the window holds all the same."""
    if end <= 0 or not os.path.exists(path):
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        _libc.fallocate(descriptor, _KEEP_SIZE_PUNCH_HOLE, 0, end)
    finally:
        os.close(descriptor)
