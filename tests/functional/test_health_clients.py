"""Health checks with the real client."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.support.engine import Engine
from tests.support.host import wait_for


def health(engine: Engine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engine.docker("inspect", name).stdout)[0]["State"]["Health"]
    return found


def test_life_of_a_check(engine: Engine) -> None:
    flags = ("--health-cmd", "echo probed; test -e /ok", "--health-interval", "100ms", "--health-retries", "2")
    engine.docker("run", "-d", "--name", "checked", *flags, "busybox", "sh", "-c", "touch /ok; sleep 1000")
    try:
        wait_for(lambda: health(engine, "checked")["Status"] == "healthy", "health")
        assert "(healthy)" in engine.docker("ps", "--filter", "name=checked").stdout
        assert health(engine, "checked")["Log"][0]["Output"] == "probed\n"
        engine.docker("exec", "checked", "rm", "/ok")
        wait_for(lambda: health(engine, "checked")["Status"] == "unhealthy", "illness")
        found = health(engine, "checked")
        assert found["FailingStreak"] >= 2
        assert len(found["Log"]) <= 5
        until = str(int(time.time()) + 1)
        actions = engine.docker(
            "events", "--since", "1", "--until", until, "--filter", "event=health_status", "--format", "{{.Action}}"
        ).stdout.split("\n")
        assert "health_status: healthy" in actions
        assert "health_status: unhealthy" in actions
        engine.kill("engine.main")
        engine.start()
        engine.docker("exec", "checked", "touch", "/ok")
        wait_for(lambda: health(engine, "checked")["Status"] == "healthy", "health after the engine's return")
    finally:
        engine.docker("rm", "-f", "checked")


def test_a_probe_that_hangs(engine: Engine) -> None:
    flags = ("--health-cmd", "sleep 60", "--health-interval", "100ms", "--health-timeout", "300ms")
    engine.docker("run", "-d", "--name", "hanging", *flags, "--health-retries", "1", "busybox", "sleep", "1000")
    try:
        wait_for(lambda: health(engine, "hanging")["Status"] == "unhealthy", "the verdict")
        entry = health(engine, "hanging")["Log"][0]
        assert (entry["ExitCode"], entry["Output"]) == (-1, "Health check exceeded timeout (300ms)")
    finally:
        engine.docker("rm", "-f", "hanging")
