"""Health checks: one sleeping task per running container that has a check, one exec per probe.

Rule: the verdict is a pure function of what was known and the probe's result (``judge``); only a change of status is
told. Source: Docker's documentation of ``HEALTHCHECK``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec
import structlog

from engine.containers.config import ContainerConfig, Healthcheck
from engine.containers.exec import ExecConfig, ExecProcess, Execs
from engine.containers.machine import Machine
from engine.containers.registry import Registry
from engine.containers.times import SECOND, rfc3339
from oci.errors import GantryError

log = structlog.get_logger()

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"
DEFAULT_INTERVAL = 30 * SECOND
DEFAULT_TIMEOUT = 30 * SECOND
DEFAULT_START_INTERVAL = 5 * SECOND
DEFAULT_RETRIES = 3
KEPT_RESULTS = 5
MAX_OUTPUT = 4096
BROKEN = -1
"""Exit code of a probe that could not run or took too long."""
_KILLED_SECONDS = 5.0


class Probe(msgspec.Struct, frozen=True):
    """One result; times in nanoseconds since the epoch."""

    start: int
    end: int
    code: int
    output: str


def command(config: ContainerConfig) -> tuple[str, ...]:
    """What a probe runs; empty when there is no health check."""
    test = config.healthcheck.test if config.healthcheck is not None else ()
    if len(test) < 2:
        return ()
    if test[0] == "CMD":
        return test[1:]
    if test[0] == "CMD-SHELL":
        return (*(config.shell or ("/bin/sh", "-c")), *test[1:])
    return ()


def judge(status: str, streak: int, probe: Probe, check: Healthcheck, started_at: int) -> tuple[str, int]:
    """The new (status, failing streak). Failures in the start period of a container never yet healthy do not count."""
    if probe.code == 0:
        return HEALTHY, 0
    if status == STARTING and probe.start - started_at < check.start_period:
        return status, streak
    streak += 1
    return (UNHEALTHY if streak >= (check.retries or DEFAULT_RETRIES) else status), streak


def pause_seconds(status: str, check: Healthcheck, started_at: int, now: int) -> float:
    """Until the next probe: the start interval while the container starts, else the interval."""
    if status == STARTING and now - started_at < check.start_period:
        return (check.start_interval or DEFAULT_START_INTERVAL) / SECOND
    return (check.interval or DEFAULT_INTERVAL) / SECOND


def status_text(health: dict[str, Any] | None) -> str:
    """What ``docker ps`` adds to "Up 5 minutes": ``" (healthy)"``, ``" (health: starting)"`` or nothing."""
    status = health["Status"] if health is not None else ""
    if status == STARTING:
        return " (health: starting)"
    return f" ({status})" if status in (HEALTHY, UNHEALTHY) else ""


class Health:
    """Watches every running container that has a check. ``machine.health`` is ``State.Health`` of inspect."""

    def __init__(self, registry: Registry, execs: Execs) -> None:
        self._registry = registry
        self._execs = execs
        self._monitors: dict[str, asyncio.Task[None]] = {}
        registry.started.append(self._started)
        registry.ended.append(self._ended)

    async def close(self) -> None:
        """Stop all monitors."""
        tasks = list(self._monitors.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _started(self, machine: Machine) -> None:
        self._stop(machine)
        words = command(machine.doc.config)
        if not words:
            machine.health = None
            return
        kept = machine.health["Log"] if machine.health is not None else []
        machine.health = {"Status": STARTING, "FailingStreak": 0, "Log": kept}
        self._monitors[machine.id] = asyncio.ensure_future(self._monitor(machine, words))

    def _ended(self, machine: Machine) -> None:
        self._stop(machine)
        if machine.health is not None:
            # What nobody watches is not healthy, as dockerd has it.
            machine.health = {**machine.health, "Status": UNHEALTHY}

    def _stop(self, machine: Machine) -> None:
        monitor = self._monitors.pop(machine.id, None)
        if monitor is not None:
            monitor.cancel()

    async def _monitor(self, machine: Machine, words: tuple[str, ...]) -> None:
        check = machine.doc.config.healthcheck
        assert check is not None
        started_at = machine.doc.state.started_at
        # A run that is older than this daemon's interest in it is looked at right away.
        resumed = time.time_ns() - started_at > 2 * SECOND
        while True:
            assert machine.health is not None
            if not resumed:
                await asyncio.sleep(pause_seconds(machine.health["Status"], check, started_at, time.time_ns()))
            resumed = False
            if machine.doc.state.status != "running":
                continue
            probe = await self._probe(machine, words, (check.timeout or DEFAULT_TIMEOUT) / SECOND)
            if machine.doc.state.status == "running":
                self._note(machine, probe, check, started_at)

    def _note(self, machine: Machine, probe: Probe, check: Healthcheck, started_at: int) -> None:
        known = machine.health
        assert known is not None
        status, streak = judge(known["Status"], known["FailingStreak"], probe, check, started_at)
        entry = {
            "Start": rfc3339(probe.start),
            "End": rfc3339(probe.end),
            "ExitCode": probe.code,
            "Output": probe.output,
        }
        machine.health = {
            "Status": status,
            "FailingStreak": streak,
            "Log": [*known["Log"], entry][-KEPT_RESULTS:],
        }
        if status != known["Status"]:
            self._registry.publish(machine, f"health_status: {status}")

    async def _probe(self, machine: Machine, words: tuple[str, ...], seconds: float) -> Probe:
        begin = time.time_ns()
        output = bytearray()

        def take(data: bytes) -> None:
            output.extend(data[: MAX_OUTPUT + 1 - len(output)])

        process: ExecProcess | None = None
        try:
            process = self._execs.create(machine.id, ExecConfig(attach_stdout=True, attach_stderr=True, cmd=words))
            async with asyncio.timeout(seconds):
                await self._execs.run_captured(process, take)
            code = process.exit_code if process.exit_code is not None else BROKEN
            return Probe(begin, time.time_ns(), code, shown(bytes(output)))
        except TimeoutError:
            await self._kill(process)
            text = f"Health check exceeded timeout ({go_duration(seconds)})"
            told = shown(bytes(output))
            return Probe(begin, time.time_ns(), BROKEN, f"{text}: {told}" if told else text)
        except (GantryError, OSError) as error:
            return Probe(begin, time.time_ns(), BROKEN, str(error))

    async def _kill(self, process: ExecProcess | None) -> None:
        if process is None:
            return
        with contextlib.suppress(GantryError, TimeoutError):
            await self._execs.kill(process)
            async with asyncio.timeout(_KILLED_SECONDS):
                await process.ended.wait()


def shown(output: bytes) -> str:
    """Output as the log keeps it: at most 4096 bytes."""
    text = output[:MAX_OUTPUT].decode("utf-8", "replace")
    return f"{text}..." if len(output) > MAX_OUTPUT else text


def go_duration(seconds: float) -> str:
    """``1.5`` as ``1.5s``, ``90`` as ``1m30s``, ``0.2`` as ``200ms``: Go's ``Duration.String``."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    head = (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "")
    return f"{head}{rest:g}s"
