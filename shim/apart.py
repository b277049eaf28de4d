"""Work done in a short-lived fork of the shim, so that what it touches is not the shim's to keep.

Rule: a shim lives as long as its container and should stay as the zygote made it; the runtime's memory goes with the
fork. The shim is a subreaper: what the fork leaves running becomes the shim's own child before ``apart`` returns; with
``apart_kept``, when the fork ends. A fork never outlives its shim: the kernel kills it with its parent, and a
replacement shim kills it by the lock it holds.
"""

from __future__ import annotations

import contextlib
import os
import select
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
    fork = Kept(lambda peer: answer_calls(peer, bundle, work, None))
    try:
        return fork.answer()
    finally:
        fork.dismiss()  # from here on what it started is our child


def apart_kept(
    bundle: str, work: Callable[[], Answer], more: Callable[[], Answer]
) -> tuple[dict[str, Any], list[int], Kept]:
    """``apart``, and the fork, which waits for ``Kept.ask`` to do ``more``.

    The first descriptor of the answer is the pidfd of the process that was started. When that process ends the fork
    does, so that its end is seen by the shim.
    """
    fork = Kept(lambda peer: answer_calls(peer, bundle, work, more))
    try:
        return (*fork.answer(), fork)
    except BaseException:
        fork.dismiss()
        raise


class Kept:
    """A fork at work. One that may be asked twice saves the fork that the second piece of work would have cost."""

    __slots__ = ("_peer", "_pid")

    def __init__(self, work: Callable[[socket.socket], None]) -> None:
        self._peer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._peer.close()
            _be_apart(parent, theirs, work)
        theirs.close()

    def answer(self) -> tuple[dict[str, Any], list[int]]:
        """What it has to say. Raises as ``apart``."""
        try:
            packet = fdpass.receive(self._peer)
        except ConnectionResetError:
            packet = None  # it ended without having read what it was asked
        return _opened(packet)

    def ask(self) -> tuple[dict[str, Any], list[int]]:
        """The answer of ``more``. Nobody waits for the fork's end, which is reaped as any child's."""
        with self._peer:
            try:
                fdpass.send(self._peer, {})
            except OSError:
                raise Killed("the runtime ended before it was asked") from None
            return self.answer()

    def dismiss(self) -> None:
        """End it, if it has not ended; what it started is our child then."""
        self._peer.close()
        with contextlib.suppress(ChildProcessError):  # reaped already
            os.waitpid(self._pid, 0)


def _opened(packet: tuple[dict[str, Any], list[int]] | None) -> tuple[dict[str, Any], list[int]]:
    if packet is None:
        raise Killed("the runtime was killed in the middle of its work")
    values, descriptors = packet
    if "error" in values:
        raise getattr(errors, values["error"])(values["message"], hint=values["hint"])
    return values, descriptors


def _be_apart(parent: int, peer: socket.socket, work: Callable[[socket.socket], None]) -> NoReturn:
    """The forked side. A fork that cannot answer says so by ending."""
    try:
        signal.set_wakeup_fd(-1)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # else it died before the kernel was told to take us along
            work(peer)
    finally:
        os._exit(0)


def answer_calls(
    peer: socket.socket,
    bundle: str,
    work: Callable[[], Answer],
    more: Callable[[], Answer] | None,
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """In a fork: tell what ``work`` gives, and what ``more`` does when asked; ``meanwhile`` comes between the two."""
    lock_helper(bundle)
    descriptors = _answer(peer, work)
    if meanwhile is not None and descriptors:
        meanwhile()
    if more is not None and descriptors and _asked_again(peer, descriptors[0]):
        _answer(peer, more)


def _asked_again(peer: socket.socket, pidfd: int) -> bool:
    """Wait for the shim's word, for the end of the process of ``pidfd``, or for the shim to let go of us."""
    poller = select.poll()
    poller.register(peer, select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    ready = {descriptor for descriptor, _ in poller.poll()}
    return peer.fileno() in ready and fdpass.receive(peer) is not None


def _answer(peer: socket.socket, work: Callable[[], Answer]) -> Sequence[int]:
    """Tell what ``work`` gives; its descriptors, none when it failed."""
    try:
        values, descriptors = work()
        fdpass.send(peer, values, descriptors)
        return descriptors
    except errors.GantryError as error:
        message = error.message[:_LONGEST_MESSAGE]
        fdpass.send(peer, {"error": type(error).__name__, "message": message, "hint": error.hint})
    except Exception as error:
        from shim.loop import report

        report("the runtime failed unexpectedly", error)
        fdpass.send(peer, {"error": "Internal", "message": f"shim: {error!r}"[:_LONGEST_MESSAGE], "hint": ""})
    return ()
