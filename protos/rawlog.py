"""The raw log of a container's output: its format and its reader.

Rule: ``stdout`` and ``stderr`` hold the bytes exactly as written; ``index`` says when they came and in which order.
Every record is a full position in both files, so seeking by time or from the end is a binary search. The writer is
the shim (``shim.logfile``); any number of readers may follow without locks. See "Raw log" in docs/internals.md.

A log whose size is limited has a file ``window`` too: what lies before the place it names is a hole, offsets stay.

A line's time is the time of the record that holds its last byte. A line that is still
open after ``MAX_LINE`` bytes is given out in pieces.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

STDOUT, STDERR = 1, 2
STREAM_NAMES = {STDOUT: "stdout", STDERR: "stderr"}
INDEX_NAME = "index"
WINDOW_NAME = "window"
RECORD_SIZE = 24
MAX_LINE = 16 << 10

_RECORD = struct.Struct("<QQQ")
_READ_SIZE = 64 << 10
_INDEX_BATCH = 512


class Record(NamedTuple):
    """``end`` bytes of ``stream`` and ``other_end`` bytes of the other one had been written at ``time_ns``."""

    time_ns: int
    stream: int
    end: int
    other_end: int

    def ends(self) -> tuple[int, int]:
        """The (stdout, stderr) offsets after this record."""
        return (self.end, self.other_end) if self.stream == STDOUT else (self.other_end, self.end)


class Span(NamedTuple):
    """Bytes ``start`` to ``end`` of ``stream``, written at ``time_ns``."""

    time_ns: int
    stream: int
    start: int
    end: int


class Window(NamedTuple):
    """Where a log begins: its first kept record and the first kept byte of each stream."""

    record: int = 0
    stdout: int = 0
    stderr: int = 0


class Chunk(NamedTuple):
    """Bytes of ``stream`` as they came, written at ``time_ns``.

    After a ``gap`` what came before does not go on here: the log was cut while it was read. It has no data of its own.
    """

    time_ns: int
    stream: int
    data: bytes
    gap: bool = False


class Line(NamedTuple):
    """One line with its newline. ``complete`` is false for a piece that ends without one."""

    time_ns: int
    stream: int
    data: bytes
    complete: bool


def encode_record(record: Record) -> bytes:
    """The 24 bytes of a record: time, end, then the stream in the low byte and ``other_end`` in the seven above."""
    return _RECORD.pack(record.time_ns, record.end, record.stream | record.other_end << 8)


def encode_window(window: Window) -> bytes:
    """The 24 bytes of the ``window`` file."""
    return _RECORD.pack(*window)


def decode_record(data: bytes) -> Record:
    """The record in 24 bytes."""
    time_ns, end, packed = _RECORD.unpack(data)
    return Record(time_ns, packed & 0xFF, end, packed >> 8)


class RawLog:
    """A raw log opened for reading. A log or a stream that does not exist (yet) reads as empty. Close it after use."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._descriptors: dict[str, int] = {}

    def close(self) -> None:
        """Close the files. The reader may be used again: it opens them anew."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> RawLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def descriptor(self, name: str) -> int | None:
        """A read-only descriptor of ``stdout``, ``stderr`` or ``index``; ``None`` while the file is not there."""
        known = self._descriptors.get(name)
        if known is None:
            with contextlib.suppress(FileNotFoundError):
                known = os.open(f"{self.directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
                self._descriptors[name] = known
        return known

    def size(self, stream: int) -> int:
        """Bytes of ``stream`` in its file, indexed or not."""
        descriptor = self.descriptor(STREAM_NAMES[stream])
        return 0 if descriptor is None else os.fstat(descriptor).st_size

    def modified_ns(self, stream: int) -> int:
        """When ``stream`` was last written, by its file's mtime."""
        descriptor = self.descriptor(STREAM_NAMES[stream])
        return 0 if descriptor is None else os.fstat(descriptor).st_mtime_ns

    def pread(self, stream: int, offset: int, size: int) -> bytes:
        """At most ``size`` bytes of ``stream`` at ``offset``."""
        descriptor = self.descriptor(STREAM_NAMES[stream])
        return b"" if descriptor is None else os.pread(descriptor, size, offset)

    def window(self) -> Window:
        """Where the log begins now; the very beginning where nothing was ever cut off."""
        try:
            with open(f"{self.directory}/{WINDOW_NAME}", "rb") as file:
                return Window(*_RECORD.unpack(file.read(RECORD_SIZE)))
        except (FileNotFoundError, struct.error):
            return Window()

    def record_count(self) -> int:
        """Whole records in the index now."""
        descriptor = self.descriptor(INDEX_NAME)
        return 0 if descriptor is None else os.fstat(descriptor).st_size // RECORD_SIZE

    def records(self, first: int, count: int) -> list[Record]:
        """At most ``count`` records from number ``first`` on."""
        descriptor = self.descriptor(INDEX_NAME)
        if descriptor is None:
            return []
        data = os.pread(descriptor, count * RECORD_SIZE, first * RECORD_SIZE)
        whole = len(data) - len(data) % RECORD_SIZE
        return [
            Record(time_ns, packed & 0xFF, end, packed >> 8)
            for time_ns, end, packed in _RECORD.iter_unpack(data[:whole])
        ]

    def ends_before(self, number: int) -> tuple[int, int]:
        """The (stdout, stderr) offsets at which record ``number`` begins."""
        window = self.window()
        if number <= window.record:
            return window.stdout, window.stderr
        return self.records(number - 1, 1)[0].ends()

    def first_record_since(self, time_ns: int) -> int:
        """The number of the first record at or after ``time_ns``."""
        count = self.record_count()
        first = min(self.window().record, count)
        return bisect.bisect_left(
            range(count), time_ns, lo=first, key=lambda number: self.records(number, 1)[0].time_ns
        )

    def first_record_past(self, stdout_offset: int, stderr_offset: int) -> int:
        """The number of the first record with bytes past either offset."""

        def is_past(number: int) -> bool:
            stdout_end, stderr_end = self.records(number, 1)[0].ends()
            return stdout_end > stdout_offset or stderr_end > stderr_offset

        count = self.record_count()
        return bisect.bisect_left(range(count), True, lo=min(self.window().record, count), key=is_past)

    def chunks(self, *, final: bool = False) -> Iterator[Chunk]:
        """Everything from the first byte to the present end, in order; see ``Cursor.spans`` for ``final``."""
        for span in Cursor(self).spans(final=final):
            yield from self.read_span(span)

    def read_span(self, span: Span) -> Iterator[Chunk]:
        """The bytes of ``span`` in pieces of at most 64 KiB."""
        at = span.start
        while at < span.end:
            data = self.pread(span.stream, at, min(span.end - at, _READ_SIZE))
            if not data:
                return
            # A hole reads as zeros, and the window was in place before it was made.
            if b"\0" in data and (first := self.window()[span.stream]) > at:
                at = min(first, span.end)
                yield Chunk(span.time_ns, span.stream, b"", gap=True)
                continue
            at += len(data)
            yield Chunk(span.time_ns, span.stream, data)


class Cursor:
    """A place in a raw log that moves forward as spans are taken; ``stdout`` and ``stderr`` are the offsets reached."""

    __slots__ = ("log", "next_record", "stderr", "stdout")

    def __init__(self, log: RawLog, stdout: int = 0, stderr: int = 0) -> None:
        self.log = log
        self.stdout = stdout
        self.stderr = stderr
        self.next_record = log.first_record_past(stdout, stderr) if stdout or stderr else 0
        self._keep_inside()

    def _keep_inside(self) -> None:
        """Move forward to where the log begins now, if that is further on."""
        window = self.log.window()
        self.next_record = max(self.next_record, window.record)
        self.stdout = max(self.stdout, window.stdout)
        self.stderr = max(self.stderr, window.stderr)

    @classmethod
    def at_record(cls, log: RawLog, number: int) -> Cursor:
        """A cursor at the beginning of record ``number``."""
        cursor = cls(log)
        cursor.stdout, cursor.stderr = log.ends_before(number)
        cursor.next_record = number
        return cursor

    def spans(self, *, final: bool = False) -> Iterator[Span]:
        """What the index tells of beyond this place. May be called again when more has been written.

        ``final`` says that nobody writes any more: bytes that no record covers (their shim died) come last, at the
        time of the file's mtime.
        """
        self._keep_inside()
        while records := self.log.records(self.next_record, _INDEX_BATCH):
            if not records[0].stream:  # a hole: the log was cut while it was read
                number = self.next_record
                self._keep_inside()
                if self.next_record == number:
                    return
                continue
            for record in records:
                if not record.stream:
                    break
                self.next_record += 1
                span = self._advance(record.time_ns, record.stream, record.end)
                if span is not None:
                    yield span
        if final:
            for stream in (STDOUT, STDERR):
                span = self._advance(self.log.modified_ns(stream), stream, self.log.size(stream))
                if span is not None:
                    yield span

    def _advance(self, time_ns: int, stream: int, end: int) -> Span | None:
        start = self.stdout if stream == STDOUT else self.stderr
        if end <= start:
            return None
        if stream == STDOUT:
            self.stdout = end
        else:
            self.stderr = end
        return Span(time_ns, stream, start, end)


class LineReader:
    """Lines of a raw log, resumable: iterate ``lines()``, and again whenever more may have been written.

    ``since_ns`` and ``until_ns`` bound the lines' times (0 for none), ``tail`` keeps the last N of the lines that are
    there when the reader is made (-1 for all; Docker applies it before the times). ``final`` as in
    ``Cursor.spans``: it also brings the last line of a stream that has no newline.
    """

    def __init__(
        self,
        log: RawLog,
        *,
        stdout: bool = True,
        stderr: bool = True,
        since_ns: int = 0,
        until_ns: int = 0,
        tail: int = -1,
        final: bool = False,
    ) -> None:
        self._log = log
        self._streams = {stream for stream, wanted in ((STDOUT, stdout), (STDERR, stderr)) if wanted}
        self._since_ns = since_ns
        self._until_ns = until_ns
        self._skip = 0
        self._open_lines = {STDOUT: b"", STDERR: b""}
        self._times = {STDOUT: 0, STDERR: 0}
        if tail >= 0:
            self._cursor, self._skip = self._seek_tail(tail, final)
        elif since_ns:
            self._cursor = self._at_line_starts(log.first_record_since(since_ns))
        else:
            self._cursor = Cursor(log)
        self._reached = {STDOUT: self._cursor.stdout, STDERR: self._cursor.stderr}

    def lines(self, *, final: bool = False) -> Iterator[Line]:
        """The lines not given before; ends at the present end of the log, or behind ``until_ns``."""
        for span in self._cursor.spans(final=final):
            if self._until_ns and span.time_ns > self._until_ns:
                return
            if span.stream in self._streams:
                yield from self._lines_of(span)
        if final:
            for stream in sorted(self._streams):
                rest = self._open_lines[stream]
                self._open_lines[stream] = b""
                if rest and self._skip:
                    self._skip -= 1
                elif rest:
                    yield from self._passed(Line(self._times[stream], stream, rest, False))

    def _lines_of(self, span: Span) -> Iterator[Line]:
        self._times[span.stream] = span.time_ns
        if span.start != self._reached[span.stream]:
            self._open_lines[span.stream] = b""  # the rest of that line was cut off
        self._reached[span.stream] = span.end
        for chunk in self._log.read_span(span):
            if chunk.gap:
                self._open_lines[span.stream] = b""
                continue
            *whole, rest = (self._open_lines[span.stream] + chunk.data).split(b"\n")
            pieces = [Line(span.time_ns, span.stream, piece + b"\n", True) for piece in whole]
            while len(rest) >= MAX_LINE:
                pieces.append(Line(span.time_ns, span.stream, rest[:MAX_LINE], False))
                rest = rest[MAX_LINE:]
            # The open line is stored before anything is given out, so an abandoned iteration only skips lines.
            self._open_lines[span.stream] = rest
            for piece in pieces:
                yield from self._passed(piece)

    def _passed(self, line: Line) -> Iterator[Line]:
        """``line`` unless tail or the times leave it out."""
        if self._skip:
            self._skip -= line.complete
        elif line.time_ns >= self._since_ns:
            yield line

    def _at_line_starts(self, number: int) -> Cursor:
        """A cursor at record ``number``, moved back in each stream to where its line begins."""
        cursor = Cursor.at_record(self._log, number)
        cursor.stdout = self._line_start(STDOUT, cursor.stdout)
        cursor.stderr = self._line_start(STDERR, cursor.stderr)
        return cursor

    def _line_start(self, stream: int, offset: int) -> int:
        window = self._log.window()
        first = window.stdout if stream == STDOUT else window.stderr
        at = offset
        while at > first:
            begin = max(first, at - _READ_SIZE)
            newline = self._log.pread(stream, begin, at - begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            at = begin
        return first

    def _seek_tail(self, tail: int, final: bool) -> tuple[Cursor, int]:
        """A cursor some way before the last ``tail`` lines, and how many lines to skip from there."""
        last = self._log.record_count()
        upper = self._log.ends_before(last)
        if final:
            upper = (self._log.size(STDOUT), self._log.size(STDERR))
        first = self._log.window().record
        number, step, newlines = last, 16, 0
        while number > first and newlines <= tail:
            number = max(first, number - step)
            step *= 2
            lower = self._log.ends_before(number)
            for stream, begin, end in zip((STDOUT, STDERR), lower, upper, strict=True):
                if stream in self._streams:
                    newlines += self._count_newlines(stream, begin, end)
            upper = lower
        cursor = self._at_line_starts(number)
        start = (cursor.stdout, cursor.stderr, cursor.next_record)
        count = self._count_lines(cursor, final)
        cursor.stdout, cursor.stderr, cursor.next_record = start
        return cursor, max(0, count - tail)

    def _count_lines(self, cursor: Cursor, final: bool) -> int:
        """Lines from ``cursor`` to the end; with ``final`` those without a newline count too."""
        count = 0
        is_open = {STDOUT: False, STDERR: False}
        for span in cursor.spans(final=final):
            if span.stream in self._streams:
                for chunk in self._log.read_span(span):
                    count += chunk.data.count(b"\n")
                    if chunk.data:
                        is_open[span.stream] = not chunk.data.endswith(b"\n")
        return count + (sum(is_open.values()) if final else 0)

    def _count_newlines(self, stream: int, begin: int, end: int) -> int:
        return sum(chunk.data.count(b"\n") for chunk in self._log.read_span(Span(0, stream, begin, end)))
