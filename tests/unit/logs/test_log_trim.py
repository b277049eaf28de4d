"""A log with ``max-size``: its disk blocks are given back, and every reader copes with the hole."""

from __future__ import annotations

import os
from pathlib import Path

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
