"""Waiting for a container's process in the foreground: signals forwarded, its terminal joined to ours.

Rule: the caller sees what it would see without the container: the same bytes, the same signals, the exit status (128 +
n for a signal). Our terminal's settings are restored whatever happens.
"""

from __future__ import annotations

from runc_py.light import TYPE_CHECKING, os, signal, suppress

if TYPE_CHECKING:
    from runc_py.notify import Relay
    from runc_py.runtime import Launched

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
        from runc_py.terminal import copy_size

        master = process.console
        signal.signal(signal.SIGWINCH, lambda _number, _frame: copy_size(master))
        copy_size(master)


def wait(process: Launched, notify: Relay | None = None) -> int:
    """Relay the terminal, if there is one, until the process ends; its exit status as a shell gives it.

    ``notify`` passes on that the service is ready, for a process without a terminal.
    """
    if notify is not None and process.console is None:
        notify.wait(process.pidfd, process.pid)
    if process.console is not None:
        from runc_py import terminal

        with terminal.RawTerminal():
            terminal.relay(process.console, process.pidfd)
    _, status = os.waitpid(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code
