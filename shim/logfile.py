"""The writing side of a raw log (format: ``protos.rawlog``).

Rule: output goes from pipe to file inside the kernel (``splice``), so a killed shim has either moved a byte or left it
in the pipe that the keeper holds. Only the index can lag behind, and ``LogFile`` catches up when it is opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from protos.rawlog import INDEX_NAME, RECORD_SIZE, STDERR, STDOUT, STREAM_NAMES, RawLog, Record, encode_record
from shim.loop import report

_CHUNK = 1 << 20
_LOST_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class LogFile:
    """A raw log opened for appending, by the one shim that owns it; ``ends`` are the indexed (stdout, stderr) sizes."""

    def __init__(self, directory: str, *, make: bool = True) -> None:
        """``make`` the directory if need be. Raises ``FileNotFoundError`` when there is none."""
        if make:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        self.reader = RawLog(directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        self._index = os.open(f"{directory}/{INDEX_NAME}", flags | os.O_APPEND, 0o640)
        self._files = {s: os.open(f"{directory}/{name}", flags, 0o640) for s, name in STREAM_NAMES.items()}
        self._ends = {STDOUT: 0, STDERR: 0}
        self._last_ns = 0
        self.lost = 0
        self._catch_up()

    @property
    def ends(self) -> tuple[int, int]:
        """The (stdout, stderr) offsets that readers may read up to."""
        return self._ends[STDOUT], self._ends[STDERR]

    def _catch_up(self) -> None:
        """Index what a killed predecessor had moved but not indexed."""
        size = os.fstat(self._index).st_size
        if size % RECORD_SIZE:
            os.ftruncate(self._index, size - size % RECORD_SIZE)
        count = size // RECORD_SIZE
        if count:
            last = self.reader.records(count - 1, 1)[0]
            self._last_ns = last.time_ns
            self._ends[STDOUT], self._ends[STDERR] = last.ends()
        for stream in (STDOUT, STDERR):
            status = os.fstat(self._files[stream])
            if status.st_size > self._ends[stream]:
                self._ends[stream] = status.st_size
                self._record(stream, status.st_mtime_ns)

    def _record(self, stream: int, time_ns: int) -> None:
        self._last_ns = max(self._last_ns, time_ns)
        record = Record(self._last_ns, stream, self._ends[stream], self._ends[STDOUT + STDERR - stream])
        os.write(self._index, encode_record(record))

    def splice_from(self, pipe: int, stream: int) -> int:
        """Move what ``pipe`` holds to the end of ``stream``; 0 at end of file. Raises ``BlockingIOError`` when empty.

        A full disk loses output rather than stopping the container: the bytes are dropped, counted in ``lost``
        and reported.
        """
        try:
            moved = os.splice(pipe, self._files[stream], _CHUNK, offset_dst=self._ends[stream])
            if moved:
                self._ends[stream] += moved
                self._record(stream, time.time_ns())
        except OSError as error:
            if error.errno not in _LOST_SPACE:
                raise
            return self._discard(pipe, stream, error)
        return moved

    def _discard(self, pipe: int, stream: int, error: OSError) -> int:
        dropped = len(os.read(pipe, 1 << 16))
        if not self.lost:
            report(f"log {self.reader.directory}/{STREAM_NAMES[stream]}: {error.strerror}: output is being dropped")
        self.lost += dropped
        return dropped

    def close(self) -> None:
        """Close all files."""
        for descriptor in (self._index, *self._files.values()):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.reader.close()
