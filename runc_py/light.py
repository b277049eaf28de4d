"""What the runtime needs of the standard library's larger modules, taken from the C modules they are made of.

Rule: the same behaviour as the module that each part is named after, without what that module imports: a cold command
pays for every import before its container exists (``socket`` and ``signal`` bring ``enum``,
``typing`` brings ``contextlib``).
"""

from __future__ import annotations

import posix
import sys

__all__ = [
    "AF_INET",
    "AF_UNIX",
    "SOCK_DGRAM",
    "SOCK_SEQPACKET",
    "SOCK_STREAM",
    "TYPE_CHECKING",
    "NamedTuple",
    "Socket",
    "open_socket",
    "os",
    "read_file",
    "recv_fds",
    "send_fds",
    "signal",
    "socketpair",
    "stat",
    "suppress",
]
TYPE_CHECKING = False

if TYPE_CHECKING:
    import os
    import signal
    import stat
    from contextlib import suppress
    from typing import NamedTuple

    from runc_py.sockets import (
        AF_INET,
        AF_UNIX,
        SOCK_DGRAM,
        SOCK_SEQPACKET,
        SOCK_STREAM,
        Socket,
        open_socket,
        recv_fds,
        send_fds,
        socketpair,
    )
else:
    import _signal as signal
    import _stat as stat
    from _collections import _tuplegetter

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

    def __getattr__(name):
        """Sockets are there for those who ask: looking at a container needs none (``_socket`` is a file of its own)."""
        if name not in _SOCKETS:
            raise AttributeError(name)
        from runc_py import sockets

        globals().update({name: getattr(sockets, name) for name in _SOCKETS})
        return globals()[name]


_SOCKETS = (
    *("AF_INET", "AF_UNIX", "SOCK_DGRAM", "SOCK_SEQPACKET", "SOCK_STREAM"),
    *("Socket", "open_socket", "recv_fds", "send_fds", "socketpair"),
)


def read_file(path: str) -> bytes:
    """All of a file, with three system calls instead of the ten of ``open(path).read()``. Raises OSError."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        chunks = []
        while chunk := posix.read(fd, 65536):
            chunks.append(chunk)
    finally:
        posix.close(fd)
    return b"".join(chunks)


if not TYPE_CHECKING:
    if "os" in sys.modules:
        import os
    else:
        from runc_py import small_os as os
