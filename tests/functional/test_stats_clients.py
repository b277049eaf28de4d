"""``docker stats`` and ``docker top`` with the real client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.engine import Engine


@pytest.fixture(scope="module")
def box(engine: Engine) -> Iterator[str]:
    engine.docker("run", "-d", "--name", "busy", "-m", "64m", "busybox", "sh", "-c", "while :; do :; done")
    yield "busy"
    engine.docker("rm", "-f", "busy")


def test_numbers_the_client_computes(engine: Engine, box: str) -> None:
    shown = json.loads(engine.docker("stats", "--no-stream", "--format", "json", box).stdout)
    assert float(shown["CPUPerc"].rstrip("%")) > 5
    assert shown["MemUsage"].endswith("/ 64MiB")
    assert int(shown["PIDs"]) >= 1
    assert shown["Name"] == box


def test_documents(engine: Engine, box: str) -> None:
    found = engine.api("GET", f"/containers/{box}/stats?stream=0&one-shot=1")[1]
    assert found["precpu_stats"]["cpu_usage"]["total_usage"] == 0
    assert found["cpu_stats"]["system_cpu_usage"] > found["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert found["memory_stats"]["limit"] == 64 << 20
    assert "eth0" in found["networks"]
    engine.docker("create", "--name", "idle", "busybox")
    assert engine.api("GET", "/containers/idle/stats?stream=0")[1]["read"] == "0001-01-01T00:00:00Z"
    engine.docker("rm", "idle")


def test_top(engine: Engine, box: str) -> None:
    lines = engine.docker("top", box).stdout.splitlines()
    assert lines[0].split()[:2] == ["UID", "PID"]
    assert "while :; do :; done" in lines[1]
    lines = engine.docker("top", box, "-eo", "pid,comm").stdout.splitlines()
    assert lines[0].split() == ["PID", "COMMAND"]
    assert len(lines) == 2
    refused = engine.docker("top", "nosuch", check=False)
    assert "No such container: nosuch" in refused.stderr
