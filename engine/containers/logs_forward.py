"""Keeps every running container's log driver fed, and its raw log within its limit.

Rule: one sleeping task per container; it wakes when the raw log grew, waits a moment so that lines go in batches, and
tries again for ever while its destination does not answer. A container never waits for any of it.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from engine.containers.inotify import DirectoryWatch
from engine.containers.logdrivers import Feed, is_behind
from engine.containers.logoptions import first_pause
from engine.containers.logs_trim import kept_bytes, trim
from engine.containers.machine import Machine
from engine.containers.registry import Registry
from protos.rawlog import INDEX_NAME

log = structlog.get_logger()

GATHER_SECONDS = 0.1
RECHECK_SECONDS = 30.0
MAX_PAUSE = 30.0
SERVED = frozenset({"syslog", "journald", "fluentd"})
DRIVEN = frozenset({"json-file", "local"}) | SERVED
LEAVING_SECONDS = 3.0
"""How long the removal of a container waits for its last lines to be taken."""


class Forwarding:
    """The tasks that feed log drivers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._watch = DirectoryWatch(INDEX_NAME)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        registry.started.append(self._started)
        registry.ended.append(self._started)  # one that began before this daemon may have ended before it, too
        registry.leaving.append(self._leaving)

    def _started(self, machine: Machine) -> None:
        running = self._tasks.get(machine.id)
        if machine.doc.host.log_config.type in DRIVEN and (running is None or running.done()):
            self._tasks[machine.id] = asyncio.ensure_future(self._guarded(machine))

    async def _leaving(self, machine: Machine) -> None:
        task = self._tasks.get(machine.id)
        if task is None or machine.doc.host.log_config.type not in SERVED:
            return
        done, _ = await asyncio.wait({task}, timeout=LEAVING_SECONDS)
        if not done:
            log.warning("a container goes with lines that its log driver did not take", container=machine.id)

    async def catch_up(self) -> None:
        """Feed the drivers of what has ended with what they did not get before the last daemon did."""
        ended = [m for m in self._registry.machines.values() if not m.doc.state.alive]
        driven = [m for m in ended if m.doc.host.log_config.type in DRIVEN - {"local"}]
        directories = [self._registry.log_directory(machine.id) for machine in driven]
        behind = await asyncio.to_thread(lambda: [is_behind(directory) for directory in directories])
        for machine, left in zip(driven, behind, strict=True):
            if left:
                self._started(machine)

    async def close(self) -> None:
        """Stop feeding; the next daemon goes on where this one ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watch.close()

    async def _guarded(self, machine: Machine) -> None:
        try:
            await self._feed(machine)
        except Exception:
            log.exception("feeding a log driver failed", container=machine.id)

    async def _feed(self, machine: Machine) -> None:
        directory = self._registry.log_directory(machine.id)
        feed = Feed(machine, directory)
        keep = kept_bytes(machine.doc)
        wake = asyncio.Event()
        try:
            with contextlib.suppress(OSError):
                self._watch.add(directory, wake)
            with machine.woken(wake):
                while True:
                    wake.clear()
                    running = machine.doc.state.running
                    await self._send_all(machine, feed, final=not machine.doc.state.alive)
                    if keep:
                        await asyncio.to_thread(trim, directory, keep, feed.sent)
                    if not running:
                        return
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(wake.wait(), RECHECK_SECONDS)
                    await asyncio.sleep(GATHER_SECONDS)
        finally:
            self._watch.remove(directory, wake)
            feed.close()
            self._tasks.pop(machine.id, None)

    async def _send_all(self, machine: Machine, feed: Feed, *, final: bool) -> None:
        first = pause = first_pause(machine.doc.host.log_config.config or {})
        while machine.doc.state.status != "gone":
            try:
                while await asyncio.to_thread(feed.step, final):
                    pause = first
                return
            except OSError as error:
                log.warning("a log driver did not take its lines", container=machine.id, error=str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE)
