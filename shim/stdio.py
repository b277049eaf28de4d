"""What the stdio URIs of Create and Exec mean: parsing, and opening FIFOs and files.

Rule: opening never waits for the other side. A FIFO is first opened in a way that cannot block (the *holder*), then
the way the process needs it; the holder keeps the FIFO whole while the client comes and goes.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from oci.errors import InvalidArgument, NotFound, Unimplemented

NULL, FIFO, FILE, RAWLOG, ATTACH, BINARY = "null", "fifo", "file", "rawlog", "attach", "binary"


class Target(NamedTuple):
    """One parsed URI: ``path`` is a FIFO, a file, the log directory, the attach socket or a program, by ``kind``."""

    kind: str
    path: str = ""
    attach: str = ""
    once: bool = False
    arguments: tuple[str, ...] = ()


class Uris(NamedTuple):
    """Stdio as the protocol gives it."""

    stdin: str
    stdout: str
    stderr: str
    terminal: bool


def parse(uri: str) -> Target:
    """What ``uri`` stands for. Raises ``InvalidArgument`` or ``Unimplemented``."""
    if not uri:
        return Target(NULL)
    if "://" not in uri:
        if not uri.startswith("/"):
            raise InvalidArgument(f"stdio path {uri!r} is not absolute")
        return Target(FIFO, uri)
    scheme, _, path, query, _ = urlsplit(uri)
    path = unquote(path)
    options = {name: values[-1] for name, values in parse_qs(query).items()}
    if not path.startswith("/"):
        raise InvalidArgument(f"stdio URI {uri!r} has no absolute path")
    if scheme == FILE:
        return Target(FILE, path)
    if scheme == FIFO:
        return Target(FIFO, path)
    if scheme == RAWLOG:
        return Target(RAWLOG, path, attach=options.get("attach", ""))
    if scheme == ATTACH:
        return Target(ATTACH, path, attach=path, once=options.get("once") == "1")
    if scheme in (BINARY, "binary-v2"):
        # As containerd has it: each name, and the first of its values where it has one.
        pairs = parse_qs(query, keep_blank_values=True).items()
        return Target(
            BINARY, path, arguments=tuple(word for name, values in pairs for word in (name, values[0]) if word)
        )
    raise Unimplemented(
        f"stdio scheme {scheme!r} of {uri!r} is not built", hint="use a FIFO, file://, binary:// or rawlog://"
    )


def attach_socket(uris: Uris) -> str:
    """The path of the attach socket that the URIs ask for; empty when they ask for none."""
    targets = (parse(uris.stdout), parse(uris.stderr), parse(uris.stdin))
    return next((target.attach for target in targets if target.attach), "")


def forget_attach_socket(uris: Uris) -> None:
    """Remove the socket that a shim which was killed could not remove."""
    with contextlib.suppress(FileNotFoundError, InvalidArgument, Unimplemented):
        if path := attach_socket(uris):
            os.unlink(path)


class Opened(NamedTuple):
    """A descriptor for the process and, for a FIFO, the holder."""

    descriptor: int
    holder: int | None


def _open(path: str, flags: int, what: str) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o640)
    except FileNotFoundError:
        raise NotFound(f"{what} {path} does not exist", hint="the client makes its FIFOs before it calls") from None


def open_null() -> int:
    """/dev/null for reading and writing."""
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def open_output(path: str) -> Opened:
    """The writing end of a FIFO (or any other existing file) for a process's output."""
    holder = _open(path, os.O_RDONLY | os.O_NONBLOCK, "output FIFO")
    try:
        if not stat.S_ISFIFO(os.fstat(holder).st_mode):
            os.close(holder)
            return Opened(_open(path, os.O_WRONLY | os.O_APPEND, "output file"), None)
        return Opened(_open(path, os.O_WRONLY, "output FIFO"), holder)
    except BaseException:
        os.close(holder)
        raise


def open_input(path: str) -> Opened:
    """The reading end of a FIFO (or any other existing file) for a process's stdin.

    The holder is a writing end: end of file comes only when it is closed (CloseIO) and the client closed its own too.
    """
    descriptor = _open(path, os.O_RDONLY | os.O_NONBLOCK, "stdin FIFO")
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.set_blocking(descriptor, True)
            return Opened(descriptor, None)
        holder = _open(path, os.O_WRONLY | os.O_NONBLOCK, "stdin FIFO")
        os.set_blocking(descriptor, True)
        return Opened(descriptor, holder)
    except BaseException:
        os.close(descriptor)
        raise


def open_file(path: str) -> int:
    """A file to append a process's output to; made with its directory when it is not there."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return _open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, "output file")
