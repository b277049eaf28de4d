"""Work done in a short-lived fork of the shim, so that what it touches is not the shim's to keep.

Rule: a shim lives as long as its container and should stay as the zygote made it; the runtime's memory goes with the
fork. The shim is a subreaper: what the fork leaves running becomes the shim's own child before ``apart`` returns. A
fork never outlives its shim: the kernel kills it with its parent, and a replacement shim kills it by the lock it holds.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from oci import errors
from protos import fdpass
from runc_py import syscalls
from shim.bundle import lock_helper

_LONGEST_MESSAGE = 16 << 10


class Killed(errors.Unavailable):
    """A fork was killed in the middle of its work: how far it came has to be found out."""


Answer = tuple[dict[str, Any], Sequence[int]]
"""A JSON object and descriptors: what comes back from a fork."""


def apart(bundle: str, work: Callable[[], Answer]) -> tuple[dict[str, Any], list[int]]:
    """The answer of ``work``, done in a fork; its descriptors arrive as copies that are the caller's.

    Raises ``GantryError`` as ``work`` does (without its traceback), and ``Killed``.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_apart(bundle, parent, theirs, work)
    theirs.close()
    try:
        packet = fdpass.receive(ours)
    finally:
        ours.close()
        os.waitpid(pid, 0)  # from here on what it started is our child
    if packet is None:
        raise Killed("the runtime was killed in the middle of its work")
    values, descriptors = packet
    if "error" in values:
        raise getattr(errors, values["error"])(values["message"], hint=values["hint"])
    return values, descriptors


def _be_apart(bundle: str, parent: int, peer: socket.socket, work: Callable[[], Answer]) -> NoReturn:
    """The forked side. A fork that cannot answer says so by ending."""
    try:
        signal.set_wakeup_fd(-1)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        lock_helper(bundle)
        if os.getppid() == parent:  # else it died before the kernel was told to take us along
            _answer(peer, work)
    finally:
        os._exit(0)


def _answer(peer: socket.socket, work: Callable[[], Answer]) -> None:
    try:
        fdpass.send(peer, *work())
    except errors.GantryError as error:
        message = error.message[:_LONGEST_MESSAGE]
        fdpass.send(peer, {"error": type(error).__name__, "message": message, "hint": error.hint})
    except Exception as error:
        from shim.loop import report

        report("the runtime failed unexpectedly", error)
        fdpass.send(peer, {"error": "Internal", "message": f"shim: {error!r}"[:_LONGEST_MESSAGE], "hint": ""})
