"""Our terminal joined to a container's: its size, raw mode, the bytes.

Rule: our terminal's settings are restored whatever happens.
"""

from __future__ import annotations

import fcntl
import select
import sys

from runc_py import console
from runc_py.light import os, suppress

_TIOCGWINSZ = 0x5413


def copy_size(terminal: int) -> None:
    """Give ``terminal`` the size of ours, if we have one."""
    with suppress(OSError):
        size = fcntl.ioctl(0, _TIOCGWINSZ, b"\0" * 8)
        rows, columns = (int.from_bytes(size[at : at + 2], sys.byteorder) for at in (0, 2))
        console.resize(terminal, rows, columns)


class RawTerminal:
    """Our terminal in raw mode inside a ``with``; nothing happens when there is none."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = None
        if os.isatty(0):
            import termios
            import tty

            self._before = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSADRAIN)  # what was typed already is for the container

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self._before)


def relay(terminal: int, pidfd: int) -> None:
    """Copy both ways until the process of ``pidfd`` has ended and nothing more comes from its terminal."""
    poller = select.poll()
    poller.register(terminal, select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    poller.register(0, select.POLLIN)
    while True:
        ready = dict(poller.poll())
        if 0 in ready and not _copy(0, terminal):
            poller.unregister(0)
        if terminal in ready and not _copy(terminal, 1):
            return
        if pidfd in ready and terminal not in ready:
            return  # ended, and nothing more came from its terminal


def _copy(source: int, target: int) -> bool:
    try:
        data = os.read(source, 65536)
    except OSError:
        return False  # EIO: the last user of the pty's other side is gone
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    return bool(data)
