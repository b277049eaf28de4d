"""Where a container's log goes besides the raw log: json-file's file, syslog, journald, fluentd.

Rule: a driver is fed from the raw log, and how far it got is on disk (``forwarded`` in the log's directory) after each
batch; so what a container says while the engine is down, or while a server does not answer, is sent later, at least
once. The json file is exact: it is cut back to the size that belongs to the recorded place. ``local`` needs no driver,
the raw log is it.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import threading
from typing import NamedTuple, Protocol

import msgspec

from engine.containers.logoptions import flag, parse_size
from engine.containers.logs import attributes
from engine.containers.logservers import Fluentd, Journald, Syslog
from engine.containers.machine import Machine
from engine.containers.times import rfc3339
from protos.rawlog import MAX_LINE, STDERR, STDOUT, STREAM_NAMES, Cursor, Line, RawLog, Span

DRIVERS = ("json-file", "local", "none", "syslog", "journald", "fluentd")
FORWARDED = "forwarded"
BATCH_LINES = 2000


class Place(msgspec.Struct, frozen=True):
    """How far a driver got: offsets in the raw log, and the json file's size at that moment."""

    stdout: int = 0
    stderr: int = 0
    file_size: int = 0


class Driver(Protocol):
    """One destination. ``send`` may block (it is called in a thread) and raises ``OSError`` when it did not work."""

    def send(self, lines: list[Line]) -> None:
        """Deliver ``lines``, all or (with an error) possibly some."""

    def size(self) -> int:
        """Bytes in the current file, 0 for what is no file."""

    def close(self) -> None:
        """Let go of sockets and files."""


def make_driver(machine: Machine, directory: str, size: int) -> Driver | None:
    """The driver of ``machine``; None where the raw log is all there is. ``size`` is what the json file shall have."""
    name, options = machine.doc.host.log_config.type, machine.doc.host.log_config.config or {}
    if name == "json-file":
        return JsonFile(f"{directory}/{machine.id}-json.log", size, options, attributes(machine))
    if name == "syslog":
        return Syslog(machine, options)
    if name == "journald":
        return Journald(machine)
    return Fluentd(machine, options) if name == "fluentd" else None


class JsonFile:
    """Docker's json file, rotated as ``max-size`` and ``max-file`` say.

    ``…log.1`` is the newest old one; with ``compress`` old ones are gzipped and called ``…log.1.gz``.
    """

    def __init__(self, path: str, size: int, options: dict[str, str], extra: dict[str, str]) -> None:
        self._path = path
        self._limit = parse_size(options["max-size"]) if "max-size" in options else 0
        self._files = int(options.get("max-file", "1"))
        self._compress = flag(options.get("compress", "false"), "compress")
        self._extra = b',"attrs":' + msgspec.json.encode(extra) if extra else b""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._size = min(size, os.fstat(self._fd).st_size)
        os.ftruncate(self._fd, self._size)

    def size(self) -> int:
        return self._size

    def send(self, lines: list[Line]) -> None:
        pending: list[bytes] = []
        ahead = 0
        for entry in map(self._encode, lines):
            if self._limit and self._size + ahead and self._size + ahead + len(entry) > self._limit:
                self._append(b"".join(pending))
                self._rotate()
                pending, ahead = [], 0
            pending.append(entry)
            ahead += len(entry)
        self._append(b"".join(pending))

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, self._size)
            self._size += done
            view = view[done:]

    def _encode(self, line: Line) -> bytes:
        text = msgspec.json.encode(line.data.decode("utf-8", "replace"))
        stream = b"stderr" if line.stream == STDERR else b"stdout"
        at = rfc3339(line.time_ns).encode()
        return b'{"log":' + text + b',"stream":"' + stream + b'"' + self._extra + b',"time":"' + at + b'"}\n'

    def _rotate(self) -> None:
        for number in range(self._files - 1, 0, -1):
            # One that could not be packed before the engine died goes on as it is.
            for end in ("", ".gz") if number > 1 else ("",):
                older = f"{self._path}.{number - 1}{end}" if number > 1 else self._path
                with contextlib.suppress(FileNotFoundError):
                    os.replace(older, f"{self._path}.{number}{end}")
        if self._compress and self._files > 1:
            _pack(f"{self._path}.1")
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        self._size = 0

    def close(self) -> None:
        os.close(self._fd)


def _pack(path: str) -> None:
    """Put ``path.gz`` in the place of ``path``."""
    temporary = f"{path}.gz.part"
    with open(path, "rb") as source, gzip.open(temporary, "wb", 6) as packed:
        shutil.copyfileobj(source, packed, 1 << 18)
    os.replace(temporary, f"{path}.gz")
    os.unlink(path)


class _Tail(NamedTuple):
    time_ns: int
    data: bytes


class Feed:
    """Moves a raw log into a driver, batch by batch, from where the last one ended."""

    def __init__(self, machine: Machine, directory: str) -> None:
        self._directory = directory
        self._place = read_place(directory)
        self.driver = make_driver(machine, directory, self._place.file_size)
        self._log = RawLog(directory)
        self._cursor: Cursor | None = None
        self._open = {STDOUT: _Tail(0, b""), STDERR: _Tail(0, b"")}
        self._ready: list[Line] = []
        self._lock = threading.Lock()

    @property
    def sent(self) -> Place | None:
        """How far the driver got; None where there is no driver."""
        return None if self.driver is None else self._place

    def step(self, final: bool) -> bool:
        """Send one batch; False when there was nothing to send. Blocking; raises ``OSError`` to be called again."""
        with self._lock:
            return self._step(final)

    def _step(self, final: bool) -> bool:
        if self.driver is None:
            return False
        if not self._ready:
            self._ready = self._next_lines(final)
        if not self._ready:
            return False
        self.driver.send(self._ready)
        self._ready = []
        cursor = self._cursor
        assert cursor is not None
        self._place = Place(
            cursor.stdout - len(self._open[STDOUT].data),
            cursor.stderr - len(self._open[STDERR].data),
            self.driver.size(),
        )
        write_place(self._directory, self._place)
        return True

    def _next_lines(self, final: bool) -> list[Line]:
        if self._cursor is None:
            self._cursor = Cursor(self._log, self._place.stdout, self._place.stderr)
        lines: list[Line] = []
        for span in self._cursor.spans(final=final):
            for chunk in self._log.read_span(span):
                *whole, rest = (self._open[span.stream].data + chunk.data).split(b"\n")
                for line in whole:
                    end = self._cut(span, line, lines)
                    lines.append(Line(span.time_ns, span.stream, end + b"\n", True))
                rest = self._cut(span, rest, lines)
                self._open[span.stream] = _Tail(span.time_ns, rest)
            if len(lines) >= BATCH_LINES:
                return lines
        if final:
            for stream, tail in self._open.items():
                if tail.data:
                    lines.append(Line(tail.time_ns, stream, tail.data, False))
                    self._open[stream] = _Tail(0, b"")
        return lines

    @staticmethod
    def _cut(span: Span, data: bytes, lines: list[Line]) -> bytes:
        """What remains of ``data`` when pieces of ``MAX_LINE`` bytes went to ``lines``."""
        while len(data) >= MAX_LINE:
            lines.append(Line(span.time_ns, span.stream, data[:MAX_LINE], False))
            data = data[MAX_LINE:]
        return data

    def close(self) -> None:
        """Let go of the driver and the log; waits for a step that is under way in a thread."""
        with self._lock:
            if self.driver is not None:
                self.driver.close()
                self.driver = None
            self._log.close()


def read_place(directory: str) -> Place:
    """Where the last batch ended; the beginning when none was sent."""
    try:
        with open(f"{directory}/{FORWARDED}", "rb") as file:
            return msgspec.json.decode(file.read(), type=Place)
    except (FileNotFoundError, msgspec.DecodeError):
        return Place()


def is_behind(directory: str) -> bool:
    """Whether the raw log has bytes that the driver did not get."""
    place = read_place(directory)
    for stream, sent in ((STDOUT, place.stdout), (STDERR, place.stderr)):
        with contextlib.suppress(FileNotFoundError):
            if os.stat(f"{directory}/{STREAM_NAMES[stream]}").st_size > sent:
                return True
    return False


def write_place(directory: str, place: Place) -> None:
    """Note where a batch ended, whole or not at all."""
    temporary = f"{directory}/.{FORWARDED}"
    with open(temporary, "wb") as file:
        file.write(msgspec.json.encode(place))
    os.replace(temporary, f"{directory}/{FORWARDED}")
