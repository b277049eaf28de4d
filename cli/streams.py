"""Bytes between this terminal and a hijacked stream: raw mode, window size, Docker's frames, half-close."""

from __future__ import annotations

import os
import selectors
import signal
import struct
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

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
    sock = reply.socket
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        if stdin:
            try:
                selector.register(0, selectors.EVENT_READ)
            except PermissionError:
                # epoll refuses regular files, which are always readable: send such a stdin at once.
                while data := os.read(0, CHUNK):
                    sock.sendall(data)
                sock.shutdown(1)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sock:
                    data = sock.recv(CHUNK)
                    if not data:
                        return
                    show(data)
                elif data := os.read(0, CHUNK):
                    sock.sendall(data)
                else:
                    selector.unregister(0)
                    sock.shutdown(1)
