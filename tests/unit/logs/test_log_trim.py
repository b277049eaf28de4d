"""A log with ``max-size``: its disk blocks are given back, and every reader copes with the hole."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from engine.containers.logdrivers import Place
from engine.containers.logs_trim import trim
from protos.rawlog import Cursor, LineReader, RawLog
from shim.logfile import LogFile


def write(log: LogFile, data: bytes, stream: int = 1) -> None:
    read, end = os.pipe()
    os.write(end, data)
    os.close(end)
    log.splice_from(read, stream)
    os.close(read)


def test_a_trimmed_log_reads_on(tmp_path: Path) -> None:
    directory = str(tmp_path / "log")
    log = LogFile(directory)
    total = 600
    for number in range(total):
        # Records end in the middle of lines, as pipes cut them.
        write(log, b"%d " % number + b"x" * 5000 + b"\nhalf of ")
        if number % 10 == 0:
            write(log, b"err %d\n" % number, 2)
    before = sum(os.stat(f"{directory}/{n}").st_blocks for n in ("stdout", "index"))
    assert not trim(directory, 500_000, Place(1000, 0))
    assert trim(directory, 500_000, None)
    assert not trim(directory, 500_000, None)
    assert sum(os.stat(f"{directory}/{n}").st_blocks for n in ("stdout", "index")) < before / 2
    assert os.stat(f"{directory}/stdout").st_size > 3_000_000
    with RawLog(directory) as raw:
        lines = list(LineReader(raw, final=True).lines(final=True))
        whole = [line.data for line in lines if line.stream == 1 and line.complete]
        numbers = [int(data.removeprefix(b"half of ").split()[0]) for data in whole]
        assert numbers == list(range(numbers[0], total))
        assert 80 < len(numbers) < 110
        assert all(b"\0" not in line.data for line in lines)
        tail = list(LineReader(raw, tail=3, final=True).lines(final=True))
        assert [line.data for line in tail] == [line.data for line in lines[-3:]]
        everything = list(LineReader(raw, tail=10**6, final=True).lines(final=True))
        assert everything == lines
        since = list(LineReader(raw, since_ns=1, final=True).lines(final=True))
        assert since == lines
        old = Cursor(raw, 10, 0)
        assert next(span.start for span in old.spans() if span.stream == 1) == raw.window().stdout
    write(log, b"goes on\n")
    with RawLog(directory) as raw:
        (last,) = LineReader(raw, tail=1, final=True).lines(final=True)
        assert last.data == b"half of goes on\n"
    log.close()
    again = LogFile(directory)
    assert again.ends == (os.stat(f"{directory}/stdout").st_size, os.stat(f"{directory}/stderr").st_size)
    again.close()


@pytest.mark.parametrize("taken", [0, 1, 7, 300])
@pytest.mark.parametrize("again", [1, 2])
def test_a_slow_reader_is_overtaken(tmp_path: Path, taken: int, again: int) -> None:
    """What was cut off meanwhile is not there any more; all that is comes once and whole."""
    directory = str(tmp_path / "log")
    log, total = LogFile(directory), 0
    with RawLog(directory) as raw:
        reader = LineReader(raw)
        got: list[bytes] = []
        for _ in range(again + 1):
            for _ in range(700):
                write(log, b"%d " % total + b"x" * 3000)
                write(log, b" end\nbegin ")
                total += 1
            lines = reader.lines()
            got += [line.data for line in itertools.islice(lines, taken)]
            assert trim(directory, 400_000, None)
            got += [line.data for line in lines]
        first = next(LineReader(raw).lines()).data
    log.close()
    numbers = [int(data.removeprefix(b"begin ").split()[0]) for data in got]
    assert all(data.endswith(b" end\n") and data.count(b"x") == 3000 for data in got)
    assert numbers == sorted(set(numbers)), "no line twice"
    kept = int(first.removeprefix(b"begin ").split()[0])
    assert numbers[-(total - kept) :] == list(range(kept, total)), "nothing that is still there is missing"
