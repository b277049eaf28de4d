"""``docker logs`` with the real client."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from tests.support.engine import Engine
from tests.support.host import wait_for


def test_streams_tail_times(engine: Engine) -> None:
    script = "echo one; sleep 0.05; echo two >&2; sleep 0.05; echo three; printf open"
    engine.docker("run", "--name", "logged", "--label", "k=v", "--log-opt", "labels=k", "busybox", "sh", "-c", script)
    try:
        done = engine.docker("logs", "logged")
        assert (done.stdout, done.stderr) == ("one\nthree\nopen", "two\n")
        assert engine.docker("logs", "--tail", "2", "logged").stdout == "three\nopen"
        assert engine.docker("logs", "--details", "logged").stdout.startswith("k=v one\n")
        stamped = engine.docker("logs", "-t", "logged").stdout.splitlines()
        first = stamped[0].split()[0]
        assert len(first) == len("2026-01-01T00:00:00.000000000Z")
        assert engine.docker("logs", "--since", stamped[1].split()[0], "logged").stdout == "three\nopen"
        assert engine.docker("logs", "--until", first, "logged").stdout == "one\n"
    finally:
        engine.docker("rm", "logged")


def test_following_ends_with_the_container(engine: Engine) -> None:
    script = "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done"
    engine.docker("run", "-d", "--name", "followed", "busybox", "sh", "-c", script)
    try:
        assert engine.docker("logs", "-f", "followed", timeout=20).stdout == "1\n2\n3\n4\n5\n"
    finally:
        engine.docker("rm", "-f", "followed")


def test_driver_none_and_unknown(engine: Engine) -> None:
    engine.docker("run", "--name", "mute", "--log-driver", "none", "busybox", "echo", "x")
    try:
        done = engine.docker("logs", "mute", check=False)
        assert "configured logging driver does not support reading" in done.stderr
    finally:
        engine.docker("rm", "mute")
    done = engine.docker("create", "--log-driver", "nosuch", "busybox", check=False)
    assert "no log driver named 'nosuch' is registered" in done.stderr


def test_log_grows_while_the_engine_is_down(engine: Engine) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
    ident = engine.docker("run", "-d", "--name", "onward", "busybox", "sh", "-c", script).stdout.strip()
    try:
        wait_for(lambda: "3\n" in engine.docker("logs", "onward").stdout, "the first lines")
        (raw,) = (engine.host.data_root / "containers" / ident).rglob("stdout")
        engine.kill("engine.main")
        before = raw.read_bytes().count(b"\n")
        wait_for(lambda: raw.read_bytes().count(b"\n") > before + 5, "lines without the engine")
        engine.start()
        lines = [int(n) for n in engine.docker("logs", "onward").stdout.split()]
        assert lines == list(range(1, len(lines) + 1))
        assert len(lines) > before + 5
    finally:
        engine.docker("rm", "-f", "onward")


def test_log_path_is_a_docker_json_file(engine: Engine) -> None:
    engine.docker("run", "--name", "filed", "busybox", "sh", "-c", "echo out; echo err >&2; printf rest")
    try:
        path = engine.docker("inspect", "-f", "{{.LogPath}}", "filed").stdout.strip()
        wait_for(lambda: "rest" in engine.host.check("cat", path), "the file")
        entries = [json.loads(line) for line in engine.host.check("cat", path).splitlines()]
        assert {(e["stream"], e["log"]) for e in entries} == {
            ("stdout", "out\n"),
            ("stderr", "err\n"),
            ("stdout", "rest"),
        }
    finally:
        engine.docker("rm", "filed")


def on_disk(directory: str) -> int:
    """Bytes that the files take; one that is renamed or removed meanwhile has none."""
    total = 0
    for path in Path(directory).iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def test_a_limited_log_stays_small_on_disk(engine: Engine) -> None:
    flags = ("--log-opt", "max-size=100k", "--log-opt", "max-file=2")
    script = "seq 1 300000; sleep 1000"
    engine.docker("run", "-d", "--name", "limited", *flags, "busybox", "sh", "-c", script)
    try:
        directory = engine.docker("inspect", "-f", "{{.LogPath}}", "limited").stdout.strip().rpartition("/")[0]
        wait_for(lambda: engine.docker("logs", "--tail", "1", "limited").stdout == "300000\n", "the last line")
        wait_for(lambda: on_disk(directory) < 700 << 10, "the log to be cut")
        lines = [int(n) for n in engine.docker("logs", "limited").stdout.split()]
        assert lines == list(range(lines[0], 300001))
        assert lines[0] > 1
    finally:
        engine.docker("rm", "-f", "limited")
