"""What happens when a container ends, and hearing of it: the supervisor's event stream.

Rule: an exit is applied once, by pid, under the machine's lock; state is on disk before anybody is told. Whenever the
stream was broken, ``reconcile`` asks for the tasks there are, so no exit is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog

from engine.backend import translated
from engine.containers import restart
from engine.containers.discarding import discard
from engine.containers.launch import Launcher, StartUnknown, volume_names
from engine.containers.machine import ExitStatus, Machine
from engine.containers.registry import Registry
from engine.containers.removal import Remover
from oci.errors import DeadlineExceeded, GantryError, NotFound, Unavailable
from protos.containerd import event_types_pb2, events_pb2, task_types_pb2, tasks_pb2, types_pb2

log = structlog.get_logger()

LOST = 255
"""Exit code of a container whose end nobody saw (the host went down), as Docker has it."""

RETRY_SECONDS = 0.1
METADATA_SECONDS = 1.0
UNAVAILABLE_SECONDS = 1.0
"""Before another restart by policy when the supervisor was away for the last one."""
SECOND = 1_000_000_000


def _tell(task: asyncio.Task[None]) -> None:
    """Log how a job failed, if it did."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, GantryError):
        log.error("container work failed", error=str(error))
    elif error is not None:
        log.error("container work failed", exc_info=error)


class Exits:
    """Follows the tasks of the engine's containers."""

    def __init__(self, registry: Registry, launcher: Launcher, remover: Remover) -> None:
        self._registry = registry
        self._launcher = launcher
        self._remover = remover
        self._jobs: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None

    def spawn(self, job: Coroutine[Any, Any, None]) -> None:
        """Run ``job`` beside everything else; its failure is logged."""
        task = self._watched(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    @staticmethod
    def _watched(job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """``job`` as a task of its own: one that is cancelled before it began is closed, too."""
        task = asyncio.ensure_future(job)
        task.add_done_callback(_tell)
        return task

    # The stream

    async def follow(self, found: Callable[[dict[str, task_types_pb2.Process]], Coroutine[Any, Any, None]]) -> None:
        """Subscribe and have ``found`` called with the tasks there are, now and after each reconnection.

        Returns once that was done for the first time; the stream is followed in the background.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watch = asyncio.ensure_future(self._follow(found, first))
        await first

    async def _follow(
        self,
        found: Callable[[dict[str, task_types_pb2.Process]], Coroutine[Any, Any, None]],
        first: asyncio.Future[None],
    ) -> None:
        again = False
        while True:
            try:
                with translated():
                    await self._subscribed(found, first, again)
            except GantryError as error:
                if not first.done():
                    first.set_exception(error)
                    return
                log.warning("the supervisor's events broke off", error=str(error))
            except Exception as error:
                if not first.done():
                    first.set_exception(error)
                    return
                log.exception("following events failed")
            again = True
            await asyncio.sleep(RETRY_SECONDS)

    async def _subscribed(self, found: Any, first: asyncio.Future[None], again: bool) -> None:
        namespace = self._registry.backend.namespace
        topics = ("/tasks/exit", "/tasks/oom")
        request = events_pb2.SubscribeRequest(filters=[f'namespace=={namespace},topic=="{topic}"' for topic in topics])
        call = self._registry.backend.events.Subscribe(request, wait_for_ready=True)
        try:
            # Ours answers at once; the original containerd sends no header before the first event.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(call.initial_metadata())), METADATA_SECONDS)
            await found(await self.tasks())
            if not first.done():
                first.set_result(None)
            if again:
                for hook in self._registry.reconnected:
                    hook()
            async for envelope in call:
                self._take(envelope)
        finally:
            call.cancel()

    async def tasks(self) -> dict[str, task_types_pb2.Process]:
        """Every task there is, by container id."""
        with translated():
            answer = await self._registry.backend.tasks.List(tasks_pb2.ListTasksRequest(), wait_for_ready=True)
        return {process.container_id or process.id: process for process in answer.tasks}

    async def _task(self, container_id: str) -> task_types_pb2.Process | None:
        """The container's task; None when there certainly is none. Waits until somebody can tell."""
        request = tasks_pb2.GetRequest(container_id=container_id)
        while True:
            try:
                with translated():
                    answer = await self._registry.backend.tasks.Get(request, wait_for_ready=True)
            except NotFound:
                return None
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(RETRY_SECONDS)
            else:
                process: task_types_pb2.Process = answer.process
                return process

    def _take(self, envelope: types_pb2.Envelope) -> None:
        if envelope.topic == "/tasks/exit":
            exit = event_types_pb2.TaskExit.FromString(envelope.event.value)
            machine = self._registry.machines.get(exit.container_id)
            if machine is None:
                return
            at = exit.exited_at.ToNanoseconds()
            if exit.id in ("", exit.container_id):
                self.spawn(self.exited(machine, exit.pid, exit.exit_status, at))
            else:
                for hook in self._registry.exec_exits:
                    hook(machine, exit.id, exit.exit_status, at)
        elif envelope.topic == "/tasks/oom":
            machine = self._registry.machines.get(event_types_pb2.TaskOOM.FromString(envelope.event.value).container_id)
            if machine is not None and machine.doc.state.alive:
                machine.set_state(oom_killed=True)
                self._registry.publish(machine, "oom")

    # An exit

    async def exited(self, machine: Machine, pid: int, code: int, at: int) -> None:
        """Init of ``machine`` has ended. Idempotent: only the run that has ``pid`` ends."""
        async with machine.lock:
            state = machine.doc.state
            if not state.alive or (state.pid and pid and state.pid != pid):
                return
            await self.end(machine, code, at or time.time_ns())
        self.afterwards(machine)

    async def end(self, machine: Machine, code: int, at: int) -> None:
        """Record and tell the end of the current run, and take its task and network away. Needs the lock."""
        doc = machine.doc
        started = doc.state.started_at
        machine.spared = machine.keep_on_exit
        again = not machine.spared and restart.wants_restart(doc, code)
        state = msgspec.structs.replace(
            doc.state,
            status="restarting" if again else "exited",
            pid=0,
            exit_code=code,
            error="",
            finished_at=at,
        )
        machine.update(state=state, restart_count=doc.restart_count + 1 if again else doc.restart_count)
        machine.ran_seconds = max(0, at - started) / SECOND
        for hook in self._registry.ended:
            hook(machine)
        seconds = str(max(0, at - started) // SECOND)
        self._registry.publish(machine, "die", {"exitCode": str(code), "execDuration": seconds})
        machine.end_run()
        publishes = doc.host.publish_all_ports or doc.host.port_bindings
        if not publishes:
            machine.tell_exit(ExitStatus(code))
        await self._release(machine)
        if publishes:
            # Who waits for the exit may want the ports at once.
            machine.tell_exit(ExitStatus(code))

    async def _release(self, machine: Machine) -> None:
        results = await asyncio.gather(
            discard(self._registry.backend, machine),
            self._registry.networks.close_sandbox(machine.id),
            return_exceptions=True,
        )
        for name in volume_names(machine.doc):
            await self._registry.volumes.release(name, machine.id)
        if machine.doc.host.ipc_mode == "shareable":
            await self._registry.shm.close(machine.id)
        for problem in results:
            if isinstance(problem, Exception):
                log.warning("an ended container was not cleaned up wholly", container=machine.id, error=str(problem))

    def afterwards(self, machine: Machine) -> None:
        """After an end, with the lock free: restart by policy, or remove what asked for it."""
        doc = machine.doc
        if doc.state.status == "restarting":
            machine.backoff = restart.next_pause(machine.backoff, machine.ran_seconds)
            self.restart_later(machine, machine.backoff)
        elif doc.state.status == "exited" and doc.host.auto_remove and not machine.spared:
            self.spawn(self._auto_remove(machine))

    async def _auto_remove(self, machine: Machine) -> None:
        if not machine.removing:
            await self._remover.remove(machine, force=True, volumes=True)

    def restart_later(self, machine: Machine, seconds: float) -> None:
        """Start ``machine`` again after a pause, unless somebody stops or starts it meanwhile."""
        machine.restart_timer = self._watched(self._restart(machine, seconds))

    async def _restart(self, machine: Machine, seconds: float) -> None:
        await asyncio.sleep(seconds)
        async with machine.lock:
            if machine.doc.state.status != "restarting" or machine.removing:
                return
            machine.restart_timer = None
            try:
                await self._launcher.start(machine)
            except StartUnknown:
                self.settle_later(machine)
            except Unavailable as error:
                # No fault of the container's: the supervisor was killed, and comes back.
                log.warning("restart by policy put off", container=machine.id, error=str(error))
                self.restart_later(machine, UNAVAILABLE_SECONDS)
            except GantryError as error:
                log.warning("restart by policy failed", container=machine.id, error=str(error))
                machine.set_state(status="exited", pid=0)

    def settle_later(self, machine: Machine) -> None:
        """Go on asking what became of a start that ended in ``StartUnknown``; locked until it is known."""
        machine.unsettled = True
        self.spawn(self._settle(machine))

    async def _settle(self, machine: Machine) -> None:
        async with machine.lock:
            began = await self._launcher.settle(machine)
            machine.unsettled = False
            if not began and machine.doc.state.status == "restarting":
                machine.set_state(status="exited", pid=0)
        if began:
            await self.look_after(machine)

    # Reconciling

    async def reconcile(self, found: dict[str, task_types_pb2.Process]) -> None:
        """Bring every machine in line with the tasks there are.

        One that is being started or ended is looked at when that is over: it must not keep the others' events waiting.
        """
        machines = list(self._registry.machines.values())
        for machine in machines:
            if machine.lock.locked():
                self.spawn(self.look_after(machine))
        free = (self._reconcile(m, found.get(m.id)) for m in machines if not m.lock.locked())
        await asyncio.gather(*free)

    async def look_after(self, machine: Machine) -> None:
        """``reconcile`` for one machine, as soon as its lock is free."""
        await self._reconcile(machine, None)

    async def _reconcile(self, machine: Machine, process: task_types_pb2.Process | None) -> None:
        async with machine.lock:
            if not machine.doc.state.alive:
                return
            if process is None:
                process = await self._task(machine.id)  # it may have been started since the list was made
            if process is not None and process.status != task_types_pb2.STOPPED:
                return
            code, at = (process.exit_status, process.exited_at.ToNanoseconds()) if process is not None else (LOST, 0)
            await self.end(machine, code, at or time.time_ns())
        self.afterwards(machine)

    async def close(self) -> None:
        """Stop following and forget pending restarts; containers go on."""
        tasks = [*self._jobs, *(m.restart_timer for m in self._registry.machines.values() if m.restart_timer)]
        if self._watch is not None:
            tasks.append(self._watch)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
