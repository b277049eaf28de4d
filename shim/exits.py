"""How processes end: wait statuses, and the exit code of a process that is somebody else's child.

Rule: an exit status is what a shell shows: the code, or 128 plus the signal's number. A process that this shim did not
start (its own shim was killed) is reaped by the zygote; its status comes from the kernel (``PIDFD_GET_INFO``, Linux
6.15: filled in once the process is reaped), from proc(5) while it is a zombie, or from the zygote's memory. Only when
nobody knows, ``UNKNOWN`` is said.
"""

from __future__ import annotations

import fcntl
import os
import struct

from protos import fdpass

UNKNOWN = 137
"""The exit status of a process of which nobody knows how it ended: that of SIGKILL, as containerd reports it."""

NEVER_STARTED = 255
"""The exit status of an exec whose program could not be started."""

_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info), 64 bytes
_INFO_EXIT = 1 << 3
_INFO = struct.Struct("<QQ11Ii")


class Children:
    """The dead children of this process. One that ends while another is awaited is kept until it is asked for."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: list[tuple[int, int]] = []

    def wait(self, pid: int) -> int:
        """The ``waitpid`` status of the child ``pid``, which nothing else waits for.

        The others are collected meanwhile: a runtime's ``delete`` may wait for helpers of the container to be gone,
        and those are this process's children once their parent has ended.
        """
        while True:
            ended, status = os.waitpid(-1, 0)
            if ended == pid:
                return status
            self._kept.append((ended, status))

    def ended(self) -> list[tuple[int, int]]:
        """All that ended since the last call: pid and ``waitpid`` status, in that order."""
        ended, self._kept = self._kept, []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            ended.append((pid, status))


def exit_status(wait_status: int) -> int:
    """The exit status in a ``waitpid`` status."""
    if os.WIFSIGNALED(wait_status):
        return 128 + os.WTERMSIG(wait_status)
    return os.WEXITSTATUS(wait_status)


def status_from_pidfd(pidfd: int) -> int | None:
    """The ``waitpid`` status of a reaped process; ``None`` when it is not reaped yet or the kernel cannot tell."""
    request = bytearray(_INFO.size)
    struct.pack_into("<Q", request, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, request)
    except OSError:
        return None
    fields = _INFO.unpack(request)
    return int(fields[-1]) if fields[0] & _INFO_EXIT else None


def status_of_zombie(pid: int) -> int | None:
    """The ``waitpid`` status of a process that nobody has reaped yet (proc(5), ``stat`` field 52); else ``None``."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[49]) if fields[0] == b"Z" else None


def status_from_zygote(path: str, pid: int) -> int | None:
    """What the zygote remembers of an orphan it reaped; asking makes it reap what it can."""
    if not path:
        return None
    try:
        peer = fdpass.connect(path, timeout=2.0)
        with peer:
            answer, _ = fdpass.call(peer, {"op": "reaped", "pid": pid})
    except (OSError, fdpass.PeerError):
        return None
    status = answer.get("status")
    return status if isinstance(status, int) else None


def status_of_orphan(pidfd: int, pid: int, zygote: str) -> int | None:
    """The ``waitpid`` status of a process that has ended and is not this process's child, if anybody knows."""
    status = status_from_pidfd(pidfd)
    if status is None and pidfd >= 0:
        # The pid is still this process's: readable from its pidfd means ended, and a zombie keeps its number.
        status = status_of_zombie(pid)
    if status is None:
        status = status_from_zygote(zygote, pid)
    if status is None:
        status = status_from_pidfd(pidfd)  # the zygote may have reaped it just now
    if status is None and zygote:
        status = status_from_supervisor(os.path.dirname(zygote), pid)
    return status


def status_from_supervisor(state: str, pid: int) -> int | None:
    """What the supervisor has noted of an orphan that it reaped, after the death of the zygote."""
    try:
        with open(f"{state}/ended/{pid}", "rb") as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        return None
