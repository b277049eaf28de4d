"""Waiting for a container's process in the foreground: signals forwarded, its terminal joined to ours.

Rule: the caller sees what it would see without the container: the same bytes, the same signals, the exit status (128 +
n for a signal). Our terminal's settings are restored whatever happens.
"""

from __future__ import annotations

import fcntl
import select
import sys

from runc_py import console
from runc_py.light import TYPE_CHECKING, os, signal, suppress

if TYPE_CHECKING:
    from runc_py.notify import Relay
    from runc_py.runtime import Launched

_TIOCGWINSZ = 0x5413
_NOT_FORWARDED = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGWINCH, signal.SIGURG}
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}


def forward_signals(process: Launched) -> None:
    """Pass on to ``process`` what this process is sent, and the size of our terminal when it changes."""

    def forward(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process.pidfd, number)

    for number in signal.valid_signals() - _NOT_FORWARDED - _FAULTS:
        if number < 32:
            signal.signal(number, forward)
    if process.console is not None:
        signal.signal(signal.SIGWINCH, lambda _number, _frame: copy_size(process.console))
        copy_size(process.console)


def copy_size(terminal: int | None) -> None:
    """Give ``terminal`` the size of ours, if we have one."""
    if terminal is None:
        return
    with suppress(OSError):
        size = fcntl.ioctl(0, _TIOCGWINSZ, b"\0" * 8)
        rows, columns = (int.from_bytes(size[at : at + 2], sys.byteorder) for at in (0, 2))
        console.resize(terminal, rows, columns)


def wait(process: Launched, notify: Relay | None = None) -> int:
    """Relay the terminal, if there is one, until the process ends; its exit status as a shell gives it.

    ``notify`` passes on that the service is ready, for a process without a terminal.
    """
    if notify is not None and process.console is None:
        notify.wait(process.pidfd, process.pid)
    if process.console is not None:
        with _RawTerminal():
            _relay(process.console, process.pidfd)
    _, status = os.waitpid(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


class _RawTerminal:
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


def _relay(terminal: int, pidfd: int) -> None:
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
