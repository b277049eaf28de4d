"""What moves bytes between a container's descriptors and where they are to go.

Rule: a pump owns the descriptors it was given, never blocks, and calls ``on_end`` exactly once, after the last byte.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from shim.logfile import LogFile
from shim.loop import READ, WRITE, Loop

_CHUNK = 64 << 10
_NONBLOCK = 2  # SPLICE_F_NONBLOCK
_ROUNDS = 16

Done = Callable[[], None]


def _nothing() -> None:
    """The default of a callback."""


class LogPump:
    """Pipe → raw log. ``on_data`` is called after each step that brought something."""

    def __init__(
        self, loop: Loop, pipe: int, log: LogFile, stream: int, on_data: Done, on_end: Done = _nothing
    ) -> None:
        self.pipe = pipe
        self._loop, self._log, self._stream = loop, log, stream
        self._on_data, self._on_end = on_data, on_end
        self.closed = False
        os.set_blocking(pipe, False)
        loop.watch(pipe, READ, self._ready)

    def _ready(self, _events: int) -> None:
        self._step(1)

    def drain(self) -> None:
        """Move everything that is in the pipe now. Whoever still holds its other end may write more later."""
        while not self.closed and self._step(_ROUNDS):
            continue

    def _step(self, rounds: int) -> bool:
        """Move at most ``rounds`` pipefuls; whether there may be more."""
        moved = 0
        try:
            for _ in range(rounds):
                moved = self._log.splice_from(self.pipe, self._stream)
                if moved == 0:
                    self._on_data()
                    self.close()
                    return False
        except BlockingIOError:
            self._on_data()
            return False
        self._on_data()
        return True

    def close(self) -> None:
        """Stop, whatever is left in the pipe."""
        if not self.closed:
            self.closed = True
            self._loop.unwatch(self.pipe)
            os.close(self.pipe)
            self._on_end()


class ConsolePump:
    """Terminal → raw log, by way of a pipe (splice wants one); the pipe survives the shim in the keeper."""

    def __init__(self, loop: Loop, console: int, pipe: tuple[int, int], log: LogFile, on_data: Done) -> None:
        self._loop, self._console, self._log, self._on_data = loop, console, log, on_data
        self.pipe_read, self.pipe_write = pipe
        self.closed = False
        os.set_blocking(console, False)
        self._flush()
        loop.watch(console, READ, self._ready)

    def _ready(self, _events: int) -> None:
        self._step()

    def drain(self) -> None:
        """Move everything that the terminal holds now."""
        while not self.closed and self._step():
            continue

    def _step(self) -> bool:
        try:
            moved = os.splice(self._console, self.pipe_write, _CHUNK, flags=_NONBLOCK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            moved = 0  # every descriptor of the other side is closed: a terminal's end of file
        if moved == 0:
            self.close()
            return False
        self._flush()
        return True

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._log.splice_from(self.pipe_read, 1):
                continue
        self._on_data()

    def close(self) -> None:
        """Stop reading. The console itself belongs to the process's io, which also writes to it."""
        if not self.closed:
            self.closed = True
            self._loop.unwatch(self._console)
            os.close(self.pipe_read)
            os.close(self.pipe_write)


class CopyPump:
    """Terminal → FIFO, file or nothing. A full FIFO stops the reading until its reader goes on."""

    def __init__(self, loop: Loop, console: int, target: int | None) -> None:
        self._loop, self._console, self._target = loop, console, target
        self._pending = b""
        self.closed = False
        self._target_is_pollable = target is not None and stat.S_ISFIFO(os.fstat(target).st_mode)
        os.set_blocking(console, False)
        loop.watch(console, READ, self._ready)

    def _ready(self, _events: int) -> None:
        self._step()

    def drain(self) -> None:
        """Copy everything that is there and fits."""
        while not self.closed and self._step():
            continue

    def _step(self) -> bool:
        if self._pending:
            return False
        try:
            data = os.read(self._console, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:
            self.close()
            return False
        self._pending = data
        return self._flush()

    def _flush(self) -> bool:
        if self._target is None:
            self._pending = b""
            return True
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._target, self._pending) :]
        except BlockingIOError:
            self._loop.unwatch(self._console)
            self._loop.watch(self._target, WRITE, self._writable)
            return False
        except OSError:
            self._pending = b""  # nobody reads, or the disk is full: the process goes on without its output
        return True

    def _writable(self, _events: int) -> None:
        if self._flush() and self._target is not None:
            self._loop.unwatch(self._target)
            self._loop.watch(self._console, READ, self._ready)

    def close(self) -> None:
        """Stop and close the target."""
        if not self.closed:
            self.closed = True
            self._loop.unwatch(self._console)
            if self._target is not None:
                if self._target_is_pollable:
                    self._loop.unwatch(self._target)
                os.close(self._target)


class InputSink:
    """The writing end of a process's stdin: a pipe's, or a console.

    ``feed`` takes bytes; while ``full`` its callers should stop reading theirs, and are told by ``on_room``.
    """

    def __init__(self, loop: Loop, descriptor: int, *, is_console: bool) -> None:
        self.descriptor = descriptor
        self._loop, self._is_console = loop, is_console
        self._pending = bytearray()
        self._end_wanted = False
        self.closed = False
        self.on_room: list[Done] = []
        self._writer = os.dup(descriptor) if is_console else descriptor  # epoll wants one registration a descriptor
        os.set_blocking(self._writer, False)

    @property
    def full(self) -> bool:
        """Whether bytes wait for the process to read."""
        return bool(self._pending)

    def feed(self, data: bytes) -> None:
        """Write ``data`` to the process, as soon as it fits. After the end it is dropped."""
        if self.closed or self._end_wanted:
            return
        self._pending += data
        self._flush()

    def end(self) -> None:
        """End of file after what is pending. A console has no such thing: nothing happens there."""
        if self._is_console or self.closed:
            return
        self._end_wanted = True
        self._flush()

    def _flush(self) -> None:
        try:
            while self._pending:
                del self._pending[: os.write(self._writer, self._pending)]
        except BlockingIOError:
            self._loop.watch(self._writer, WRITE, self._writable)
            return
        except OSError:
            self.close()  # the reader is gone
            return
        if self._end_wanted:
            self.close()

    def _writable(self, _events: int) -> None:
        self._flush()
        if self._pending:
            return
        if not self.closed:
            self._loop.unwatch(self._writer)
        for callback in list(self.on_room):
            callback()

    def close(self) -> None:
        """Drop what is pending and let go. The console itself stays open: it is not this object's."""
        if not self.closed:
            self.closed = True
            self._pending.clear()
            self._loop.unwatch(self._writer)
            os.close(self._writer)
            for callback in list(self.on_room):
                callback()


class FifoInput:
    """FIFO → console: the stdin of a process with a terminal."""

    def __init__(self, loop: Loop, fifo: int, sink: InputSink) -> None:
        self._loop, self._fifo, self._sink = loop, fifo, sink
        self.closed = False
        sink.on_room.append(self._resume)
        loop.watch(fifo, READ, self._ready)

    def _ready(self, _events: int) -> None:
        try:
            data = os.read(self._fifo, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        self._sink.feed(data)
        if self._sink.full:
            self._loop.unwatch(self._fifo)

    def _resume(self) -> None:
        if self._sink.closed:
            self.close()
        elif not self.closed:
            self._loop.watch(self._fifo, READ, self._ready)

    def close(self) -> None:
        """Stop reading."""
        if not self.closed:
            self.closed = True
            self._sink.on_room.remove(self._resume)
            self._loop.unwatch(self._fifo)
            os.close(self._fifo)
