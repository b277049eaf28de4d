"""What a container's first process and its parent say to each other while the container is made.

Rule: one socket of type SEQPACKET, one ``Message`` a packet, every kind listed in ``Kind``; end of file means that the
other side died.

    child → parent                           parent → child
    STAGE pid     the real child's pid       GO        namespaces' maps and cgroup are set
    OFFSETS       write timens_offsets       GO
    HOOKS         run the runtime's hooks    GO
    CONSOLE + fd  the pty's master
    LISTENER n    descriptor n notifies of calls   GO   the agent has it
    WARNING text
    READY         set up, waiting for start
    FAILED kind, text
"""

from __future__ import annotations

from runc_py import errors, light
from runc_py.light import NamedTuple, Socket, os

MAX_TEXT = 8192


class Kind:
    """First byte of a packet."""

    STAGE = b"S"
    OFFSETS = b"T"
    HOOKS = b"H"
    CONSOLE = b"C"
    LISTENER = b"L"
    WARNING = b"W"
    READY = b"R"
    FAILED = b"E"
    GO = b"G"
    CLOSED = b""


class Message(NamedTuple):
    """One packet; ``fd`` is a descriptor that came with it."""

    kind: bytes
    text: str = ""
    fd: int = -1


def send(channel: Socket, kind: bytes, text: str = "", fd: int = -1) -> None:
    """Send one message."""
    payload = kind + text.encode("utf-8", "surrogateescape")[:MAX_TEXT]
    if fd >= 0:
        light.send_fds(channel, payload, [fd])
    else:
        channel.send(payload)


def receive(channel: Socket) -> Message:
    """The next message; ``Kind.CLOSED`` when the peer is gone."""
    try:
        data, descriptors = light.recv_fds(channel, MAX_TEXT + 64, 1)
    except ConnectionResetError:
        return Message(Kind.CLOSED)
    text = data[1:].decode("utf-8", "surrogateescape")
    return Message(data[:1], text, descriptors[0] if descriptors else -1)


def send_failure(channel: Socket, error: BaseException) -> None:
    """Report ``error`` from a child: its kind by name and its text, no traceback (that would read files)."""
    name = type(error).__name__
    if name not in errors.BY_NAME:
        name = "InvalidSpec" if isinstance(error, errors.InvalidSpec) else "RuntimeFailure"
    send(channel, Kind.FAILED, f"{name}\n{describe(error)}")


def describe(error: BaseException) -> str:
    """One sentence for an exception."""
    if isinstance(error, OSError) and error.errno is not None:
        subject = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"{subject}{os.strerror(error.errno).lower()}"
    if isinstance(error, errors.RuntimeFailure):
        return str(error)
    return f"{type(error).__name__}: {error}"


def failure(message: Message) -> errors.RuntimeFailure:
    """The exception that a FAILED message carries."""
    name, _, text = message.text.partition("\n")
    return errors.BY_NAME.get(name, errors.RuntimeFailure)(text)
