"""The raw log's reader against logs written record by record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos import rawlog
from protos.rawlog import STDERR, STDOUT, Cursor, Line, LineReader, RawLog, Record


class Writer:
    """Writes a log the slow, obvious way."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ends = {STDOUT: 0, STDERR: 0}

    def write(self, time_ns: int, stream: int, data: bytes, *, indexed: bool = True) -> None:
        with (self.directory / rawlog.STREAM_NAMES[stream]).open("ab") as file:
            file.write(data)
        self.ends[stream] += len(data)
        if indexed:
            record = Record(time_ns, stream, self.ends[stream], self.ends[STDOUT + STDERR - stream])
            with (self.directory / "index").open("ab") as file:
                file.write(rawlog.encode_record(record))


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RawLog]:
    with RawLog(str(tmp_path)) as opened:
        yield opened


def text(lines: list[Line]) -> list[bytes]:
    return [line.data for line in lines]


def test_record_bytes_are_the_documented_ones() -> None:
    data = rawlog.encode_record(Record(5, STDERR, 7, 0x010203))
    assert data == bytes([5] + [0] * 7 + [7] + [0] * 7 + [2, 3, 2, 1, 0, 0, 0, 0])
    assert rawlog.decode_record(data) == Record(5, STDERR, 7, 0x010203)


def test_an_absent_log_is_empty(log: RawLog) -> None:
    assert list(log.chunks(final=True)) == []
    assert list(LineReader(log, tail=3).lines(final=True)) == []


def test_order_across_streams_and_times(writer: Writer, log: RawLog) -> None:
    writer.write(10, STDOUT, b"a\nb")
    writer.write(20, STDERR, b"E\n")
    writer.write(30, STDOUT, b"c\n")
    assert list(LineReader(log).lines()) == [
        Line(10, STDOUT, b"a\n", True),
        Line(20, STDERR, b"E\n", True),
        Line(30, STDOUT, b"bc\n", True),
    ]


def test_following_resumes_in_the_middle_of_a_line(writer: Writer, log: RawLog) -> None:
    reader = LineReader(log)
    writer.write(1, STDOUT, b"one\ntw")
    assert text(list(reader.lines())) == [b"one\n"]
    assert text(list(reader.lines())) == []
    writer.write(2, STDOUT, b"o\nthree")
    assert text(list(reader.lines())) == [b"two\n"]
    assert list(reader.lines(final=True)) == [Line(2, STDOUT, b"three", False)]
    assert list(reader.lines(final=True)) == []


def test_bytes_without_a_record_come_at_the_end_with_the_mtime(writer: Writer, log: RawLog, tmp_path: Path) -> None:
    writer.write(1, STDOUT, b"one\n")
    writer.write(0, STDOUT, b"two\n", indexed=False)
    os.utime(tmp_path / "stdout", ns=(99, 99))
    assert text(list(LineReader(log).lines())) == [b"one\n"]
    assert list(LineReader(log).lines(final=True))[-1] == Line(99, STDOUT, b"two\n", True)


def test_since_until_and_streams(writer: Writer, log: RawLog) -> None:
    for second in range(1, 9):
        writer.write(second * 10, STDOUT if second % 2 else STDERR, b"%d\n" % second)
    assert text(list(LineReader(log, since_ns=30, until_ns=60).lines())) == [b"3\n", b"4\n", b"5\n", b"6\n"]
    assert text(list(LineReader(log, stdout=False).lines())) == [b"2\n", b"4\n", b"6\n", b"8\n"]
    assert text(list(LineReader(log, stdout=False, tail=1).lines())) == [b"8\n"]
    assert text(list(LineReader(log, since_ns=80, tail=3).lines())) == [b"8\n"]


def test_since_keeps_a_line_whole(writer: Writer, log: RawLog) -> None:
    writer.write(1, STDOUT, b"old\nbeg")
    writer.write(9, STDOUT, b"in\n")
    assert text(list(LineReader(log, since_ns=5).lines())) == [b"begin\n"]


def test_tail_zero_gives_only_what_comes_later(writer: Writer, log: RawLog) -> None:
    writer.write(1, STDOUT, b"a\nb\n")
    reader = LineReader(log, tail=0)
    assert list(reader.lines()) == []
    writer.write(2, STDOUT, b"c\n")
    assert text(list(reader.lines())) == [b"c\n"]


def test_long_lines_come_in_pieces(writer: Writer, log: RawLog) -> None:
    data = b"x" * (3 * rawlog.MAX_LINE + 5) + b"\n"
    writer.write(1, STDOUT, data[:-1])
    writer.write(2, STDOUT, data[-1:])
    lines = list(LineReader(log).lines())
    assert b"".join(text(lines)) == data
    assert [line.complete for line in lines][-1] is True
    assert lines[0].complete is False


CHUNKS = st.lists(
    st.tuples(st.sampled_from([STDOUT, STDERR]), st.text(alphabet="ab\n", min_size=1, max_size=12)), max_size=60
)


@given(chunks=CHUNKS, tail=st.integers(0, 12), final=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tail_is_the_end_of_all_lines(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[int, str]], tail: int, final: bool
) -> None:
    directory = tmp_path_factory.mktemp("log")
    writer = Writer(directory)
    for number, (stream, data) in enumerate(chunks):
        writer.write(number + 1, stream, data.encode())
    with RawLog(str(directory)) as log:
        everything = list(LineReader(log).lines(final=final))
        assert list(LineReader(log, tail=tail, final=final).lines(final=final)) == everything[-tail:] * (tail > 0)


@given(chunks=CHUNKS, at=st.integers(0, 60))
@settings(max_examples=80, deadline=None)
def test_a_cursor_at_offsets_gives_exactly_the_rest(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[int, str]], at: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    writer = Writer(directory)
    offsets = (0, 0)
    for number, (stream, data) in enumerate(chunks):
        if number == at:
            offsets = (writer.ends[STDOUT], writer.ends[STDERR])
        writer.write(number + 1, stream, data.encode())
    if at >= len(chunks):
        offsets = (writer.ends[STDOUT], writer.ends[STDERR])
    with RawLog(str(directory)) as log:
        got = [(s.stream, s.end - s.start) for s in Cursor(log, *offsets).spans()]
    assert got == [(stream, len(data)) for stream, data in chunks[at:]]
