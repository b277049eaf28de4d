"""Sockets without the ``socket`` module: see ``light``, through which they are used.

Rule: the same behaviour as the part of ``socket`` that each is named after.
"""

from __future__ import annotations

import _socket
import sys

TYPE_CHECKING = False

if TYPE_CHECKING:
    import socket

    Socket = socket.socket
else:

    class Socket(_socket.socket):
        """``socket.socket`` as far as the runtime uses it."""

        __slots__ = ("__weakref__",)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

        def accept(self):
            fd, address = self._accept()
            return Socket(self.family, self.type, self.proto, fd), address


AF_INET, AF_UNIX = _socket.AF_INET, _socket.AF_UNIX
SOCK_DGRAM, SOCK_STREAM, SOCK_SEQPACKET = _socket.SOCK_DGRAM, _socket.SOCK_STREAM, _socket.SOCK_SEQPACKET
_INT = 4
"""Size of a descriptor in a control message."""


def open_socket(family: int, kind: int) -> Socket:
    """``socket.socket(family, kind)``, close-on-exec."""
    return Socket(family, kind | _socket.SOCK_CLOEXEC)


def socketpair(kind: int) -> tuple[Socket, Socket]:
    """Two connected AF_UNIX sockets, close-on-exec."""
    first, second = _socket.socketpair(AF_UNIX, kind | _socket.SOCK_CLOEXEC)
    return Socket(AF_UNIX, kind, 0, first.detach()), Socket(AF_UNIX, kind, 0, second.detach())


def send_fds(channel: Socket, payload: bytes, fds: list[int]) -> None:
    """``socket.send_fds``: one message with descriptors."""
    packed = b"".join([fd.to_bytes(_INT, sys.byteorder) for fd in fds])
    channel.sendmsg([payload], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)])


def recv_fds(channel: Socket, size: int, count: int) -> tuple[bytes, list[int]]:
    """``socket.recv_fds``: one message and the descriptors that came with it."""
    data, ancillary, _, _ = channel.recvmsg(size, _socket.CMSG_LEN(count * _INT))
    fds: list[int] = []
    for level, kind, packed in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            whole = len(packed) - len(packed) % _INT
            fds += [int.from_bytes(packed[at : at + _INT], sys.byteorder) for at in range(0, whole, _INT)]
    return data, fds
