"""Bytes between this terminal and a hijacked stream: raw mode, window size, Docker's frames, half-close."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cli import transport
from cli.http import Reply

CHUNK = 1 << 16
FRAME = struct.Struct(">BxxxI")


def terminal_size() -> tuple[int, int]:
    """(rows, columns) of the terminal on stdout."""
    size = os.get_terminal_size(1)
    return size.lines, size.columns


@contextmanager
def raw_terminal(active: bool) -> Iterator[None]:
    """Stdin in raw mode while the block runs, restored after it whatever happens."""
    if not active:
        yield
        return
    saved = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


@contextmanager
def on_resize(active: bool, resize: Callable[[int, int], None]) -> Iterator[None]:
    """Call ``resize(rows, columns)`` at every SIGWINCH while the block runs."""
    if not active:
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        resize(*terminal_size())

    saved = signal.signal(signal.SIGWINCH, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, saved)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte of ``data`` to ``fd``."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Demultiplexer:
    """Splits Docker's frames into stdout and stderr; frames may arrive in any pieces."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The (stream, payload) pairs that ``data`` completes: 1 stdout, 2 stderr."""
        self._pending += data
        while len(self._pending) >= FRAME.size:
            stream, length = FRAME.unpack_from(self._pending)
            end = FRAME.size + length
            if len(self._pending) < end:
                return
            yield stream, self._pending[FRAME.size : end]
            self._pending = self._pending[end:]


def pump(reply: Reply, *, stdin: bool, terminal: bool) -> None:
    """Copy until the engine ends the stream: its output to our stdout and stderr, our stdin to it if asked."""
    frames = Demultiplexer()

    def show(data: bytes) -> None:
        if terminal:
            write_all(1, data)
            return
        for stream, payload in frames.feed(data):
            write_all(2 if stream == 2 else 1, payload)

    sys.stdout.flush()
    show(reply.early())
    _Pump(reply.socket, show).run(stdin)


class _Pump:
    """Both directions at once: a full socket never keeps the other direction waiting."""

    def __init__(self, sock: socket.socket, show: Callable[[bytes], None]) -> None:
        self._socket = sock
        self._show = show
        self._unsent = b""
        # poll takes regular files too, which epoll refuses.
        self._selector = selectors.PollSelector()

    def run(self, stdin: bool) -> None:
        """Until the engine ends its half."""
        self._socket.setblocking(False)
        self._selector.register(self._socket, selectors.EVENT_READ)
        if stdin:
            self._listen(True)
        with self._selector:
            while True:
                for key, events in self._selector.select():
                    if key.fileobj is not self._socket:
                        self._take()
                        continue
                    if events & selectors.EVENT_READ and not self._receive():
                        return
                    if self._unsent:
                        self._send()

    def _listen(self, on: bool) -> None:
        """Read stdin, or let it wait until what was read is sent."""
        if on:
            self._selector.register(0, selectors.EVENT_READ)
        else:
            self._selector.unregister(0)

    def _take(self) -> None:
        self._listen(False)
        data = os.read(0, CHUNK)
        if not data:
            transport.half_close(self._socket)
            self._socket.setblocking(False)
            return
        self._unsent = data
        self._selector.modify(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _send(self) -> None:
        """Send what waits, as far as the engine takes it now."""
        with contextlib.suppress(BlockingIOError, *_want()):
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except (BrokenPipeError, ConnectionResetError):
                # It ended before it read everything; what it said is still to be read.
                self._unsent = b""
                self._selector.modify(self._socket, selectors.EVENT_READ)
                return
        if not self._unsent:
            self._selector.modify(self._socket, selectors.EVENT_READ)
            self._listen(True)

    def _receive(self) -> bool:
        """Show what came; False at the end."""
        with contextlib.suppress(BlockingIOError, *_want()):
            while True:
                data = self._socket.recv(CHUNK)
                if not data:
                    return False
                self._show(data)
                if not getattr(self._socket, "pending", int)():
                    return True
        return True


def _want() -> tuple[type[Exception], ...]:
    """TLS's words for "later", where TLS is in use."""
    ssl = sys.modules.get("ssl")
    return (ssl.SSLWantReadError, ssl.SSLWantWriteError) if ssl is not None else ()
