"""Shims at rest: forks that hold another's descriptors and wait until there is something to do.

Rule: as little as possible is touched between the fork and the wait, because what is touched is memory of this process
alone from then on. The state stays the bytes that came, and the forks come from a template, a process that does nothing
but fork: a page that the parent writes between two forks is each child's own, too. Wire: "Shims at rest" in
docs/internals.md.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from typing import NoReturn

from protos import fdpass
from shim.bundle import LOCK, SHIM_BYTE, check_name

GO = b"go"
"""What the shim that hands over sends when it ends, and will touch nothing any more."""

Resume = Callable[[bytes, list[int]], int]
"""Be a shim again, by its state and all descriptors that came with it; the exit code."""

_PID = struct.Struct("i")
_LEADING = struct.Struct("ii")
_LARGEST = 2 * fdpass.MAX_PACKET
_ANCILLARY = socket.CMSG_SPACE(fdpass.MAX_DESCRIPTORS * _PID.size)
_OWN_DESCRIPTORS, _NO_DESCRIPTOR = 4, 1 << 30
"""The template has the three standard streams and its socket; all else came with a packet."""


class Template:
    """The process from which shims at rest are forked. It ends with this object's process."""

    def __init__(self, resume: Resume, let_go: Callable[[], None]) -> None:
        """``let_go`` is called in the new process, to close what is not its own."""
        self._peer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._peer.close()
                let_go()
                _be_template(theirs, resume)
            finally:
                os._exit(0)
        theirs.close()

    def fork(self, packet: bytes, descriptors: Sequence[int]) -> int:
        """The pid of a process that takes over, by an ``encode``d packet. Raises ``OSError``.

        The first descriptor is a socket whose other end is the shim's that hands over; the second is an epoll set,
        which tells when there is something to do.
        """
        socket.send_fds(self._peer, [packet], descriptors)
        answer = self._peer.recv(_PID.size)
        if not answer:
            raise ConnectionError("the template has ended")
        return int(_PID.unpack(answer)[0])

    def close(self) -> None:
        """Let it end."""
        self._peer.close()


def encode(bundle_path: str, state: str) -> bytes:
    """The packet that hands over: the path of the lock, NUL, state."""
    return f"{bundle_path}/{LOCK}\0{state}".encode()


def _be_template(peer: socket.socket, resume: Resume) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a shim ended: the kernel reaps it
    _set_name(b"gantry-template")
    peer = socket.socket(fileno=os.dup2(peer.detach(), _OWN_DESCRIPTORS - 1, inheritable=False))
    os.closerange(_OWN_DESCRIPTORS, _NO_DESCRIPTOR)
    while True:
        packet, ancillary, _, _ = peer.recvmsg(_LARGEST, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        if not ancillary:
            return
        pid = os.fork()
        if pid == 0:
            _be_at_rest(packet, ancillary[0][2], resume)
        os.closerange(_OWN_DESCRIPTORS, _NO_DESCRIPTOR)
        peer.send(_PID.pack(pid))


def _be_at_rest(packet: bytes, rights: bytes, resume: Resume) -> NoReturn:
    try:
        os.close(_OWN_DESCRIPTORS - 1)
        os.setsid()
        link, events = _LEADING.unpack_from(rights)
        if os.read(link, len(GO)) == GO:  # else the other stays awake, or was killed in the middle of it
            path, _, state = packet.partition(b"\0")
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # never closed, as in ``bundle.claim``
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, SHIM_BYTE)  # raises: somebody has claimed the bundle
            _set_name(b"gantry-shim")
            with select.epoll.fromfd(events) as watched:
                watched.poll()
            check_name(path.decode(), lock)
            resume(state, array.array("i", rights).tolist())
    finally:
        os._exit(0)


def _set_name(name: bytes) -> None:
    descriptor = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(descriptor, name)
    os.close(descriptor)
