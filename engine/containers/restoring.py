"""The daemon's start: what the store says, what containerd has, and making the two agree.

Rule: a create that was not answered never happened; a start that was not answered happened if the process was told to
run, else it leaves nothing; a removal that began is finished; a run that ended unseen gets the exit code and time its
shim wrote down.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec
import structlog

from engine.backend import translated
from engine.containers import restart, subpaths
from engine.containers.discarding import discard, discard_task
from engine.containers.exits import Exits
from engine.containers.launch import LABEL, Launcher, StartUnknown
from engine.containers.machine import CREATING, Machine
from engine.containers.model import Container
from engine.containers.registry import Registry
from engine.containers.removal import Remover, remove_tree
from oci.errors import GantryError
from protos.containerd import containers_pb2, task_types_pb2

log = structlog.get_logger()


class Restorer:
    """Brings the containers of the last daemon back."""

    def __init__(self, registry: Registry, launcher: Launcher, remover: Remover, exits: Exits) -> None:
        self._registry = registry
        self._launcher = launcher
        self._remover = remover
        self._exits = exits
        self._restored = False

    def load(self) -> None:
        """Read the documents."""
        for key, body in list(self._registry.store.all("container")):
            try:
                doc = msgspec.json.decode(body, type=Container)
            except msgspec.DecodeError as error:
                log.error("a container's document cannot be read", container=key, error=str(error))
                continue
            self._registry.machines[key] = Machine(self._registry.store, doc)
            with contextlib.suppress(GantryError):
                self._registry.names.reserve(doc.name, key)

    async def tasks_found(self, found: dict[str, task_types_pb2.Process]) -> None:
        """The first time restore everything, later only reconcile."""
        if not self._restored:
            await self._restore(found)
            self._restored = True
        await self._exits.reconcile(found)
        await self._discard_strangers(found)

    async def _restore(self, found: dict[str, task_types_pb2.Process]) -> None:
        recorded = await self._recorded()
        await self._settle(found)
        alive = []
        for machine in self._registry.machines.values():
            machine.recorded = machine.id in recorded
            machine.task_left = True  # until it is known that there is none
            process = found.get(machine.id)
            if process is not None and self._goes_on(machine, process):
                self._adopt(machine, process)
                alive.append(machine.id)
            elif process is not None and process.status == task_types_pb2.STOPPED:
                self._ended_unseen(machine, process)
            machine.not_starting()
        await self._registry.networks.restore(frozenset(alive))
        await self._registry.shm.sweep(frozenset(alive))
        subpaths.sweep(self._registry.subpaths)
        for stray in recorded - set(self._registry.machines):
            self._exits.spawn(self._sweep_record(stray))

    async def _settle(self, found: dict[str, task_types_pb2.Process]) -> None:
        """Find out what became of the starts that were under way; ``found`` is brought up to date."""

        async def one(machine: Machine) -> None:
            with contextlib.suppress(StartUnknown):
                process = await self._launcher.settled(machine.id)
                found.pop(machine.id, None)
                if process is not None:
                    found[machine.id] = process

        await asyncio.gather(*(one(m) for m in self._registry.machines.values() if m.doc.starting and m.id in found))

    @staticmethod
    def _goes_on(machine: Machine, process: task_types_pb2.Process) -> bool:
        """Whether the task counts as alive: one that cannot be asked now does if it did before."""
        if process.status == task_types_pb2.UNKNOWN:
            return machine.doc.state.alive or machine.doc.starting
        return process.status in (task_types_pb2.RUNNING, task_types_pb2.PAUSED)

    async def _recorded(self) -> set[str]:
        """Ids of the containerd records that the engine made."""
        with translated():
            answer = await self._registry.backend.containers.List(
                containers_pb2.ListContainersRequest(), wait_for_ready=True
            )
        return {c.id for c in answer.containers if c.labels.get(LABEL) == "container"}

    def _adopt(self, machine: Machine, process: task_types_pb2.Process) -> None:
        """Go on with a run that began under the last daemon."""
        doc = machine.doc
        status = "paused" if process.status == task_types_pb2.PAUSED else "running"
        if process.status == task_types_pb2.UNKNOWN and doc.state.alive:
            status = doc.state.status
        if doc.state.status != status or doc.state.pid != process.pid:
            started_at = 0 if doc.starting else doc.state.started_at
            state = msgspec.structs.replace(
                doc.state, status=status, pid=process.pid, started_at=started_at or time.time_ns()
            )
            machine.update(state=state, ever_started=True, starting=False)
        machine.begin_run()
        machine.task_created()
        for hook in self._registry.started:
            hook(machine)

    @staticmethod
    def _ended_unseen(machine: Machine, process: task_types_pb2.Process) -> None:
        """A start that was under way when the daemon died did run: count it as running, its end follows.

        A task that ended without having been told to run was taken back: it goes with the strangers.
        """
        doc = machine.doc
        if doc.state.alive or not doc.starting:
            return
        at = process.exited_at.ToNanoseconds() or time.time_ns()
        state = msgspec.structs.replace(
            doc.state, status="running", pid=process.pid, error="", oom_killed=False, started_at=at
        )
        machine.update(state=state, ever_started=True, starting=False)
        machine.begin_run()

    async def _sweep_record(self, container_id: str) -> None:
        await discard_task(self._registry.backend, container_id)
        await self._remover.forget_record(container_id)
        # A shim that was started anew for the task has opened the log, and made its directory for that.
        await remove_tree(self._registry.directory(container_id))

    async def _discard_strangers(self, found: dict[str, task_types_pb2.Process]) -> None:
        """Tasks of containers that do not run: left by a start or an end that was interrupted."""
        await self._sweep_unknown([task for task in found if task not in self._registry.machines])
        for container_id in found:
            machine = self._registry.machines.get(container_id)
            if machine is None or machine.lock.locked():
                continue
            async with machine.lock:
                if not machine.doc.state.alive:
                    await discard(self._registry.backend, machine)

    async def _sweep_unknown(self, unknown: list[str]) -> None:
        """Tasks whose container was removed while the supervisor could not discard them; not those of others."""
        if not unknown:
            return
        with translated():
            answer = await self._registry.backend.containers.List(
                containers_pb2.ListContainersRequest(), wait_for_ready=True
            )
        theirs = {c.id for c in answer.containers if c.labels.get(LABEL) != "container"}
        for container_id in unknown:
            if container_id not in theirs and container_id not in self._registry.machines:
                self._exits.spawn(self._sweep_record(container_id))

    async def finish(self) -> None:
        """After the reconciliation: finish removals, sweep half-made creates, start what its policy wants started."""
        jobs = []
        for machine in list(self._registry.machines.values()):
            doc = machine.doc
            if doc.state.status in (CREATING, "removing", "dead"):
                jobs.append(self._sweep(machine))
            elif doc.state.status == "restarting" and machine.restart_timer is None:
                self._exits.restart_later(machine, 0)
            elif doc.state.status in ("exited", "created") and restart.wants_start_at_boot(doc):
                machine.update(stopped_by_user=False)
                machine.set_state(status="restarting")
                self._exits.restart_later(machine, 0)
            elif doc.state.status == "exited" and doc.host.auto_remove:
                self._exits.afterwards(machine)
        await asyncio.gather(*jobs)

    async def _sweep(self, machine: Machine) -> None:
        try:
            machine.recorded = True
            if machine.doc.state.status == CREATING:
                await self._remover.remove_snapshot(machine.doc.snapshotter, machine.id)
                await remove_tree(self._registry.directory(machine.id))
                self._remover.drop(machine)
            else:
                await self._remover.remove(machine, force=True, volumes=machine.doc.host.auto_remove)
        except GantryError as error:
            log.error("a container could not be swept", container=machine.id, error=str(error))
