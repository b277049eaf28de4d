"""Tracing: what it wraps is there, a wrapped function writes its span, and nothing is wrapped when nobody asks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oci import trace
from tests.bench.trace import Span, placed, table

FOLLOWED = {
    "engine": "from engine import traced; traced.follow()",
    "containerd_py": "from containerd_py import traced; traced.follow()",
    "shim": "from shim import traced, zygote; traced.follow(zygote.Zygote)",
}


class Work:
    """Something to follow."""

    def plain(self, number: int) -> int:
        return number + 1

    async def waiting(self) -> str:
        await asyncio.sleep(0)
        return "done"

    @staticmethod
    def fails() -> None:
        raise ValueError("no")


@pytest.mark.parametrize("room", FOLLOWED)
def test_every_step_that_can_be_followed_exists(room: str, tmp_path: Path) -> None:
    environment = {**os.environ, trace.VARIABLE: str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FOLLOWED[room]], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_spans_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not trace.directory, "off unless the environment asks"
    monkeypatch.setattr(trace, "directory", str(tmp_path))
    monkeypatch.setattr(trace, "_file", [0, -1, 0])
    for name, of in (("plain", lambda _, number: f"plain {number}"), ("waiting", "waiting"), ("fails", "fails")):
        trace.wrap(Work, name, of)
    assert Work().plain(1) == 2
    assert asyncio.run(Work().waiting()) == "done"
    with pytest.raises(ValueError, match="no"):
        Work.fails()
    lines = [json.loads(line) for line in (tmp_path / f"{os.getpid()}.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["plain 1", "waiting", "fails"]
    assert all(line["start"] <= line["end"] for line in lines)


def test_a_file_that_was_closed_is_opened_again_and_nothing_is_written_into_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "directory", str(tmp_path))
    monkeypatch.setattr(trace, "_file", [0, -1, 0])
    trace.record("first", 1, 2)
    with open(tmp_path / "other", "wb") as other:
        os.dup2(other.fileno(), trace._file[1])
        trace.record("second", 1, 2)
        os.close(trace._file[1])
        trace.record("third", 1, 2)
    assert (tmp_path / "other").read_bytes() == b""
    assert len((tmp_path / f"{os.getpid()}.jsonl").read_text().splitlines()) == 3
    os.close(trace._file[1])


def test_a_span_lies_below_the_nearest_above_it() -> None:
    run = Span("docker run", 0, 100_000_000)
    spans = [
        Span("http POST /x", 10_000_000, 90_000_000),
        Span("call Tasks/Create", 20_000_000, 60_000_000),
        Span("network: connect", 30_000_000, 50_000_000),
        Span("shim: exit", 200_000_000, 210_000_000),
    ]
    paths = {span.name: path for path, span in placed(run, spans)}
    assert paths["call Tasks/Create"][-2:] == ("http POST /x", "call Tasks/Create")
    assert paths["network: connect"][-2] == "http POST /x", "what runs beside a call is not part of it"
    assert paths["shim: exit"] == ("afterwards", "shim: exit")
    lines = table([run], spans)
    assert [line.length for line in lines if line.path == ("docker run",)] == [100.0]
