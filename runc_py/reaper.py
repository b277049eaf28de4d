"""A small process 1 for containers that asked for one: starts the program, hands signals on, reaps, ends as it ended.

Rule: what tini does, and no more. It runs where the program would have: with the container's ids, capabilities and
seccomp filter. It imports nothing, opens nothing and stays undumpable; of the host it shows neither arguments nor
environment.
"""

from __future__ import annotations

from runc_py import process, syscalls
from runc_py.light import NamedTuple, os, signal, suppress

NAME = "docker-init"
_TITLE = b"/sbin/docker-init --"
_DEADLY = frozenset(
    (signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS)
)
"""Faults of its own are no signals to hand on."""


class Room(NamedTuple):
    """Addresses of the memory that ``/proc/1/cmdline`` and ``/proc/1/environ`` show."""

    arguments: int
    arguments_end: int
    environment: int
    environment_end: int


def find_room() -> Room:
    """To be called while the host's ``/proc`` is there (proc_pid_stat(5), fields 48 to 51)."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return Room(*map(int, fields[45:49]))


def supervise(program: process.Program, preserve_fds: int, room: Room) -> None:
    """Start ``program`` as a child and end with its status. Returns only, by raising ProcessFailure, in that child."""
    kept = {*_DEADLY, signal.SIGTTIN, signal.SIGTTOU}
    handed_on = {int(number) for number in signal.valid_signals() if number not in kept}
    signal.pthread_sigmask(signal.SIG_SETMASK, handed_on)
    for number in (signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        _take_terminal()
        process.reset_signals()
        process.execute(program, preserve_fds)
    # Whoever waits for the start hears of it by the end of file that the program's execve makes.
    syscalls.close_range(3)
    syscalls.set_process_name(NAME)
    _show([_TITLE, *map(os.fsencode, program.arguments)], room)
    os._exit(_status_of(pid, handed_on))


def _take_terminal() -> None:
    """A process group of its own, which has the terminal if there is one: Ctrl-C is for the program."""
    os.setpgid(0, 0)
    with suppress(OSError):
        os.tcsetpgrp(0, os.getpgrp())


def _show(words: list[bytes], room: Room) -> None:
    size = room.arguments_end - room.arguments
    # A last byte that is not zero tells the kernel that the arguments are one text (fs/proc/base.c, setproctitle).
    text = b" ".join(words)[: max(0, size - 2)].ljust(size - 1, b"\0") + b"\1"
    syscalls.overwrite(room.arguments, text)
    syscalls.overwrite(room.environment, bytes(room.environment_end - room.environment))


def _status_of(pid: int, handed_on: set[int]) -> int:
    """Hand signals on until ``pid`` has ended; the status to end with."""
    while True:
        number = signal.sigwait(handed_on)
        if number == signal.SIGCHLD:
            status = _reap(pid)
            if status is not None:
                return status
        else:
            with suppress(OSError):
                os.kill(pid, number)


def _reap(pid: int) -> int | None:
    """Take every ended child away; the status of ``pid`` if it was among them."""
    ended = None
    while True:
        try:
            found, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if found == 0:
            return ended
        if found == pid:
            code = os.waitstatus_to_exitcode(status)
            ended = code if code >= 0 else 128 - code
