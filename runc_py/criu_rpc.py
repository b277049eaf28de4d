"""criu's own protocol, for containers with a terminal: on its command line it takes none whose master is outside.

Rule: ``criu swrk`` reads one request from a socket and answers it; in between it tells of each step, waits for a yes,
and with the step ``orphan-pts-master`` sends the descriptor. Source: criu's ``rpc.proto``, of which this encodes what
is used; numbers are those of the fields there.
"""

from __future__ import annotations

from runc_py import light
from runc_py.errors import NotBuilt
from runc_py.light import TYPE_CHECKING, NamedTuple, os

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runc_py.light import Socket

SOCKET = 3
"""The program's end of the socket."""

DUMP, RESTORE, PRE_DUMP = 1, 2, 4
_NOTIFY = 6
_MESSAGE_BYTES = 1 << 16
_SWITCHES = {
    "--ext-unix-sk": 4, "--tcp-established": 5, "--shell-job": 7, "--file-locks": 8, "--auto-dedup": 16,
    "--lazy-pages": 48,
}  # fmt: skip
_WORDS = {
    "--prev-images-dir": 14,
    "--freeze-cgroup": 44,
    "--config": 51,
    "--lsm-profile": 53,
    "--lsm-mount-context": 63,
}
_CGROUP_MODES = {"ignore": 0, "soft": 3, "full": 4, "strict": 5}
_NAMESPACES = {"ipc": 1 << 27, "mnt": 1 << 17, "net": 1 << 30, "pid": 1 << 29, "user": 1 << 28, "uts": 1 << 26}


class Job(NamedTuple):
    """What to ask for. ``flags`` are criu's, as its command line has them; ``pid`` is of a process to dump."""

    kind: int
    root: str
    log: str
    external: Sequence[str]
    flags: Sequence[str]
    cgroup_mode: str = "ignore"
    pid: int = 0
    leave_running: bool = False


def request(job: Job, images: int, work: int) -> bytes:
    """The criu_req for ``job``; the directories are descriptors of whoever made the socket, where criu opens them anew.

    Raises NotBuilt for a flag that criu's protocol does not have.
    """
    options = [_number(1, images), _number(9, 4), _text(10, job.log), _number(12, 1), _text(13, job.root)]
    options += [_number(17, work), _number(34, _CGROUP_MODES[job.cgroup_mode]), _number(50, 1)]
    options += [_number(26, 1)] if job.kind == RESTORE else [_number(2, job.pid), _number(3, int(job.leave_running))]
    options += [_text(37, word) for word in job.external]
    empty = 0
    words = iter(job.flags)
    for word in words:
        if word in _SWITCHES:
            options.append(_number(_SWITCHES[word], 1))
        elif word in _WORDS:
            options.append(_text(_WORDS[word], next(words, "")))
        elif word == "--track-mem":
            options.append(_number(15, 1))
        elif word == "--status-fd":
            options.append(_number(49, int(next(words, "0"))))
        elif word == "--empty-ns":
            empty |= _NAMESPACES.get(next(words, ""), 0)
        else:
            raise NotBuilt(f"checkpoint and restore: {word} is not for containers with a terminal")
    options += [_number(38, empty)] if empty else []
    return _number(1, job.kind) + _bytes(2, b"".join(options))


class Outcome(NamedTuple):
    """Whether it was done, the pid of a restored process, and the master of its terminal."""

    done: bool
    pid: int = 0
    console: int | None = None


def converse(channel: Socket, message: bytes) -> Outcome:
    """Have the request ``message`` carried out."""
    try:
        return _answers(channel, message)
    except OSError:
        return Outcome(False)  # criu ended without reading, or before it answered


def _answers(channel: Socket, message: bytes) -> Outcome:
    console: int | None = None
    channel.send(message)
    while True:
        data, fds = light.recv_fds(channel, _MESSAGE_BYTES, 1)
        if not data:
            return Outcome(False)
        answer = dict(_fields(data))
        if fds:
            console = fds[0]
            os.set_inheritable(console, False)
        if answer.get(1) != _NOTIFY:
            restored = answer.get(4)
            pid = dict(_fields(restored)).get(1) if isinstance(restored, bytes) else 0
            return Outcome(bool(answer.get(2)), pid if isinstance(pid, int) else 0, console)
        channel.send(_number(1, _NOTIFY) + _number(3, 1))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, os.fsencode(value))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: numbers and bytes are all that criu answers with."""
    at = 0
    while at < len(data):
        key, at = _read(data, at)
        value, at = _read(data, at)
        if key & 7 == 2:
            yield key >> 3, data[at : at + value]
            at += value
        else:
            yield key >> 3, value


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
