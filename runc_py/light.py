"""What the runtime needs of the standard library's larger modules, taken from the C modules they are made of.

Rule: the same behaviour as the module that each part is named after, without what that module imports: a cold command
pays for every import before its container exists (``socket`` and ``signal`` bring ``enum``,
``typing`` brings ``contextlib``).
"""

from __future__ import annotations

import _socket
import sys

__all__ = [
    "AF_INET",
    "AF_UNIX",
    "SOCK_DGRAM",
    "SOCK_SEQPACKET",
    "SOCK_STREAM",
    "TYPE_CHECKING",
    "NamedTuple",
    "Protocol",
    "Socket",
    "open_socket",
    "recv_fds",
    "send_fds",
    "signal",
    "socketpair",
    "suppress",
]
TYPE_CHECKING = False

if TYPE_CHECKING:
    import signal
    import socket
    from contextlib import suppress
    from typing import NamedTuple, Protocol

    Socket = socket.socket
else:
    import _signal as signal
    from _collections import _tuplegetter

    Protocol = object

    class NamedTuple(tuple):
        """``typing.NamedTuple`` in its class form: fields by annotation, defaults by assignment."""

        __slots__ = ()
        _fields = ()
        _field_defaults = None

        def __init_subclass__(cls):
            if cls._fields:
                return  # a subclass of a record has its fields
            cls._fields = tuple(cls.__annotations__)
            cls._field_defaults = {name: cls.__dict__[name] for name in cls._fields if name in cls.__dict__}
            cls.__match_args__ = cls._fields
            for index, name in enumerate(cls._fields):
                setattr(cls, name, _tuplegetter(index, None))

        def __new__(cls, *values, **named):
            fields, defaults = cls._fields, cls._field_defaults
            if named or len(values) < len(fields):
                rest = fields[len(values) :]
                try:
                    values += tuple([named.pop(name) if name in named else defaults[name] for name in rest])
                except KeyError as error:
                    raise TypeError(f"{cls.__name__}: {error} is missing") from None
            if named or len(values) != len(fields):
                raise TypeError(f"{cls.__name__}: wrong fields {[*named] or len(values)}")
            return tuple.__new__(cls, values)

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            fields = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
            return f"{type(self).__name__}({fields})"

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changed):
            return type(self)(**{**self._asdict(), **changed})

    class suppress:
        """``contextlib.suppress``."""

        __slots__ = ("_kinds",)

        def __init__(self, *kinds):
            self._kinds = kinds

        def __enter__(self):
            return None

        def __exit__(self, kind, *_):
            return kind is not None and issubclass(kind, self._kinds)

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
