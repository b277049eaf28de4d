"""``docker stats``: one sample a second for each container that somebody watches.

Rule: nothing is sampled for nobody. A container that does not run gives samples with only its name and id, as dockerd's
stream does, until it is removed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from engine.backend import translated
from engine.containers.machine import Machine
from engine.containers.model import ZERO_TIME
from engine.containers.registry import Registry
from engine.containers.stats_metrics import decode, parse_net_dev, system_cpu
from engine.containers.times import rfc3339
from oci.errors import GantryError
from protos.containerd import tasks_pb2

PERIOD = 1.0
_NO_CPU: dict[str, Any] = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}


def machine_memory() -> int:
    """Bytes of memory of this host."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Stats:
    """Samples of running containers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._memory = machine_memory()
        self._ticks = os.sysconf("SC_CLK_TCK")

    async def once(self, reference: str, *, one_shot: bool) -> bytes:
        """One document; without ``one_shot`` after two samples, so that the CPU share can be computed from it."""
        machine = self._registry.find(reference)
        sample = await self.sample(machine, None)
        if not one_shot and machine.doc.state.alive:
            await asyncio.sleep(PERIOD)
            sample = await self.sample(machine, sample)
        return msgspec.json.encode(sample) + b"\n"

    def stream(self, reference: str) -> AsyncIterator[bytes]:
        """A document a second until the container is removed."""
        return self._stream(self._registry.find(reference))

    async def _stream(self, machine: Machine) -> AsyncIterator[bytes]:
        previous: dict[str, Any] | None = None
        loop = asyncio.get_running_loop()
        due = loop.time()
        while machine.doc.state.status != "gone":
            previous = await self.sample(machine, previous)
            yield msgspec.json.encode(previous) + b"\n"
            due = max(due + PERIOD, loop.time())
            await asyncio.sleep(due - loop.time())

    async def sample(self, machine: Machine, previous: dict[str, Any] | None) -> dict[str, Any]:
        """``StatsResponse`` now; ``previous`` gives its ``precpu_stats``."""
        base = {"id": machine.id, "name": f"/{machine.doc.name}"}
        nothing = {
            "read": ZERO_TIME, "preread": ZERO_TIME, "pids_stats": {}, "blkio_stats": {}, "num_procs": 0,
            "storage_stats": {}, "cpu_stats": _NO_CPU, "precpu_stats": _NO_CPU, "memory_stats": {},
        }  # fmt: skip
        if not machine.doc.state.alive:
            return base | nothing
        try:
            with translated():
                answer = await self._registry.backend.tasks.Metrics(
                    tasks_pb2.MetricsRequest(filters=[f"id=={machine.id}"])
                )
        except GantryError:
            return base | nothing
        if not answer.metrics:
            return base | nothing
        data = answer.metrics[0].data
        parts = decode(data.type_url, data.value, self._memory)
        parts["cpu_stats"] |= {"system_cpu_usage": self._system_cpu(), "online_cpus": os.cpu_count() or 1}
        sample = base | nothing | parts | {"read": rfc3339(time.time_ns())}
        if previous is not None:
            sample |= {"preread": previous["read"], "precpu_stats": previous["cpu_stats"]}
        if networks := self._networks(machine):
            sample["networks"] = networks
        return sample

    def _system_cpu(self) -> int:
        with open("/proc/stat", encoding="ascii") as file:
            return system_cpu(file.readline(), self._ticks)

    @staticmethod
    def _networks(machine: Machine) -> dict[str, dict[str, int]]:
        if machine.doc.host.network_mode == "host":
            return {}
        try:
            with open(f"/proc/{machine.doc.state.pid}/net/dev", encoding="ascii") as file:
                return parse_net_dev(file.read())
        except OSError:
            return {}
