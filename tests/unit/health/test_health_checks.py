"""Health checks: the verdict, the pauses, and a monitor over a stand-in for execs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from engine.containers.config import ContainerConfig, Healthcheck, HostConfig
from engine.containers.exec import Execs
from engine.containers.health import (
    HEALTHY,
    STARTING,
    UNHEALTHY,
    Health,
    Probe,
    command,
    go_duration,
    judge,
    pause_seconds,
    shown,
    status_text,
)
from engine.containers.machine import Machine
from engine.containers.model import Container, State
from engine.containers.registry import Registry
from engine.store import Store

S = 1_000_000_000


def probe(code: int, at: int = 100 * S) -> Probe:
    return Probe(at, at, code, "")


def test_verdict() -> None:
    check = Healthcheck(retries=2, start_period=10 * S)
    assert judge(STARTING, 1, probe(0), check, 0) == (HEALTHY, 0)
    assert judge(STARTING, 0, probe(1, 5 * S), check, 0) == (STARTING, 0)
    assert judge(STARTING, 0, probe(1, 11 * S), check, 0) == (STARTING, 1)
    assert judge(HEALTHY, 0, probe(1, 5 * S), check, 0) == (HEALTHY, 1)
    assert judge(HEALTHY, 1, probe(1), check, 0) == (UNHEALTHY, 2)
    assert judge(HEALTHY, 1, probe(1), Healthcheck(), 0) == (HEALTHY, 2)


def test_pauses() -> None:
    check = Healthcheck(interval=20 * S, start_period=10 * S, start_interval=S)
    assert pause_seconds(STARTING, check, 0, 5 * S) == 1
    assert pause_seconds(HEALTHY, check, 0, 5 * S) == 20
    assert pause_seconds(STARTING, check, 0, 15 * S) == 20
    assert pause_seconds(STARTING, Healthcheck(), 0, 0) == 30


def test_commands_and_texts() -> None:
    def words(*test: str, **more: Any) -> tuple[str, ...]:
        return command(ContainerConfig(healthcheck=Healthcheck(test=test), **more))

    assert words("CMD", "a", "b") == ("a", "b")
    assert words("CMD-SHELL", "a b") == ("/bin/sh", "-c", "a b")
    assert words("CMD-SHELL", "x", shell=("bash", "-lc")) == ("bash", "-lc", "x")
    assert words("NONE") == words() == command(ContainerConfig()) == ()
    assert [status_text({"Status": s}) for s in (STARTING, HEALTHY, UNHEALTHY)] == [
        " (health: starting)", " (healthy)", " (unhealthy)",
    ]  # fmt: skip
    assert status_text(None) == ""
    assert [go_duration(s) for s in (0.2, 1.5, 90, 30)] == ["200ms", "1.5s", "1m30s", "30s"]
    assert shown(b"x" * 5000) == "x" * 4096 + "..."


def machine_with(check: Healthcheck) -> Machine:
    import time

    doc = Container(
        id="c" * 64, name="box", created_at=1, image_id="sha256:0", image_manifest=None, chain_id="",
        snapshotter="overlayfs", platform="linux/amd64", path="sh", args=(),
        config=ContainerConfig(healthcheck=check), host=HostConfig(),
        state=State(status="running", pid=5, started_at=time.time_ns()),
    )  # fmt: skip
    return Machine(Store(":memory:"), doc)


class FakeExecs:
    def __init__(self) -> None:
        self.codes: list[int] = []
        self.hang = False
        self.killed = 0

    def create(self, reference: str, config: Any) -> Any:
        ended = asyncio.Event()
        return SimpleNamespace(exit_code=None, ended=ended)

    async def run_captured(self, process: Any, take: Any) -> None:
        if self.hang:
            await asyncio.sleep(60)
        take(b"said")
        process.exit_code = self.codes.pop(0)

    async def kill(self, process: Any) -> None:
        self.killed += 1
        process.ended.set()


def test_monitor_tells_changes_only() -> None:
    async def scenario() -> tuple[list[str], Any, int]:
        events: list[str] = []
        registry = SimpleNamespace(
            started=[], ended=[], publish=lambda machine, action, attributes=None: events.append(action)
        )
        execs = FakeExecs()
        health = Health(cast(Registry, registry), cast(Execs, execs))
        interval = 10_000_000
        machine = machine_with(Healthcheck(test=("CMD", "x"), interval=interval, retries=2, timeout=interval * 3))
        execs.codes = [0, 0, 1, 1, 1, 0, 1]
        registry.started[0](machine)
        assert machine.health == {"Status": "starting", "FailingStreak": 0, "Log": []}
        async with asyncio.timeout(5):
            while execs.codes:  # noqa: ASYNC110 - the fake's list
                await asyncio.sleep(0.005)
        execs.hang = True
        async with asyncio.timeout(5):
            while not execs.killed:  # noqa: ASYNC110 - the fake's counter
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.005)
        registry.ended[0](machine)
        await health.close()
        return events, machine.health, execs.killed

    events, health, _ = asyncio.run(scenario())
    assert events == [f"health_status: {s}" for s in ("healthy", "unhealthy", "healthy", "unhealthy")]
    assert health["Status"] == UNHEALTHY
    assert len(health["Log"]) == 5
    assert (health["Log"][-1]["ExitCode"], health["Log"][-1]["Output"]) == (-1, "Health check exceeded timeout (30ms)")
    assert (health["Log"][0]["ExitCode"], health["Log"][0]["Output"]) == (1, "said")
