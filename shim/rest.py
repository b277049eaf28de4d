"""Shims at rest: forks that hold another's descriptors and wait until there is something to do.

Rule: as little as possible is touched between the fork and the wait, because what is touched is memory of this process
alone from then on. The state stays the bytes that came, and the forks come from a template, a process that does nothing
but fork: a page that the parent writes between two forks is each child's own, too. Wire: "Shims at rest" in
docs/internals.md.
"""

from __future__ import annotations

import _socket
import array
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Sequence

from protos import fdpass
from shim.bundle import LOCK, SHIM_BYTE, check_name

GO = b"go"
"""What the shim that hands over sends when it ends, and will touch nothing any more."""

Resume = Callable[[bytes, list[int]], int]
"""Be a shim again, by its state and all descriptors that came with it; the exit code."""

_PID = struct.Struct("i")
_LARGEST = 2 * fdpass.MAX_PACKET
_ANCILLARY = socket.CMSG_SPACE(fdpass.MAX_DESCRIPTORS * _PID.size)
_PEER, _LINK, _EVENTS, _NO_DESCRIPTOR = 3, 4, 5, 1 << 30
"""The template has the three standard streams and its socket; what comes with a packet has the numbers after that."""


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


def _be_template(ours: socket.socket, resume: Resume) -> None:
    """Fork for every packet. What happens in the fork stands here, too: another function would be other pages."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a shim ended: the kernel reaps it
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, os.dup2(ours.detach(), _PEER, inheritable=False))
    os.closerange(_LINK, _NO_DESCRIPTOR)
    packet = bytearray(_LARGEST)
    buffers, room, flags, end = [packet], _ANCILLARY, int(socket.MSG_CMSG_CLOEXEC), _NO_DESCRIPTOR
    read, write, open, close, close_range, fork = os.read, os.write, os.open, os.close, os.closerange, os.fork
    receive, pack, lockf, epoll = peer.recvmsg_into, _PID.pack, fcntl.lockf, select.epoll.fromfd
    exclusive, update, put = fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDWR | os.O_CLOEXEC, os.O_WRONLY | os.O_CLOEXEC
    name_file, name, byte, go = b"/proc/self/comm", b"gantry-template", SHIM_BYTE, GO
    _write(name_file, name)
    name = b"gantry-shim"
    while True:
        size, ancillary, _, _ = receive(buffers, room, flags)
        if not size:
            return
        pid = fork()
        if pid == 0:
            break
        close_range(_LINK, end)
        write(_PEER, pack(pid))
    close(_PEER)
    if read(_LINK, 2) != go:
        return  # the other stays awake, or was killed in the middle of it
    path = bytes(packet[: packet.index(0)])
    lock = open(path, update)  # never closed, as in ``bundle.claim``
    lockf(lock, exclusive, 1, byte)  # raises: somebody has claimed the bundle
    comm = open(name_file, put)
    write(comm, name)
    close(comm)
    epoll(_EVENTS).poll(maxevents=1)
    os.setsid()
    check_name(path.decode(), lock)
    resume(bytes(packet[len(path) + 1 : size]), array.array("i", ancillary[0][2]).tolist())


def _write(path: bytes, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    os.write(descriptor, data)
    os.close(descriptor)
