"""Ending what runs: signals, stop with its patience, pause.

Rule: a signal goes out without the machine's lock and the exit is awaited, because whoever records the exit needs it.
"""

from __future__ import annotations

import asyncio

from engine.backend import translated
from engine.calls import HungUp
from engine.containers.freezing import freeze, thaw
from engine.containers.machine import ExitStatus, Machine
from engine.containers.registry import Registry
from engine.containers.signals import parse_signal
from oci.errors import FailedPrecondition, GantryError, Internal, NotFound
from protos.containerd import tasks_pb2

SIGKILL, SIGTERM = 9, 15
DEFAULT_TIMEOUT = 10
KILL_SECONDS = 10.0
"""How long a killed process may take to go before we say so."""


class Stopper:
    """Signals, stop, pause and unpause."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def signal(self, machine: Machine, number: int) -> None:
        """Send one signal to init and tell of it; a process that has just ended is no error.

        A paused container gets the signal and goes on, as it could not act on it otherwise.
        """
        paused = machine.doc.state.status == "paused"
        try:
            await self._send(machine, number)
            if paused and number in (SIGKILL, self.stop_signal(machine)):
                await thaw(self._registry.backend, machine.id)
        except (NotFound, FailedPrecondition):
            if machine.doc.state.alive:
                await self._ending(machine)
        self._registry.publish(machine, "kill", {"signal": str(number)})

    async def _send(self, machine: Machine, number: int) -> None:
        request = tasks_pb2.KillRequest(container_id=machine.id, signal=number)
        while True:
            try:
                with translated():
                    await self._registry.backend.tasks.Kill(request)
                return
            except HungUp:
                if number != SIGKILL:  # the only one that does not count how often it comes
                    raise

    async def _ending(self, machine: Machine) -> None:
        """The task has no process any more: its exit is about to be told."""
        await self.exit_within(machine, machine.next_exit(), KILL_SECONDS)

    @staticmethod
    def stop_signal(machine: Machine) -> int:
        """The signal that asks this container to end."""
        return parse_signal(machine.doc.config.stop_signal) if machine.doc.config.stop_signal else SIGTERM

    async def kill(self, machine: Machine, signal: str) -> None:
        """``docker kill``. Raises ``FailedPrecondition`` when it does not run."""
        number = parse_signal(signal) if signal else SIGKILL
        state = machine.doc.state
        if not state.running:
            raise FailedPrecondition(
                f"cannot kill container: {machine.doc.name}: container {machine.id} is not running"
            )
        if number == SIGKILL or not machine.doc.config.stop_signal or number == self.stop_signal(machine):
            machine.update(stopped_by_user=True)
        if state.status == "restarting":
            await self._give_up_restart(machine)
        if not machine.doc.state.alive:
            return
        if number == SIGKILL:
            exited = machine.next_exit()
            await self.signal(machine, number)
            if not await self.exit_within(machine, exited, KILL_SECONDS):
                raise Internal(
                    f"cannot kill container: {machine.doc.name}: "
                    "tried to kill container, but did not receive an exit event"
                )
        else:
            await self.signal(machine, number)

    async def _give_up_restart(self, machine: Machine) -> None:
        """A container between two runs ends by not being started again; if its start has begun, it runs after this."""
        machine.cancel_restart()
        async with machine.lock:
            if machine.doc.state.status == "restarting":
                machine.set_state(status="exited", pid=0)
                machine.tell_exit(ExitStatus(machine.doc.state.exit_code))

    async def stop(self, machine: Machine, signal: str = "", seconds: int | None = None) -> bool:
        """Ask the container to end, kill it after ``seconds`` (negative: never). False when it did not run."""
        if not machine.doc.state.running:
            return False
        number = parse_signal(signal) if signal else self.stop_signal(machine)
        if seconds is None:
            seconds = machine.doc.config.stop_timeout
        patience = DEFAULT_TIMEOUT if seconds is None else seconds
        machine.update(stopped_by_user=True)
        if machine.doc.state.status == "restarting":
            await self._give_up_restart(machine)
        if machine.doc.state.alive:
            await self._end_within(machine, number, patience)
        self._registry.publish(machine, "stop")
        return True

    async def _end_within(self, machine: Machine, number: int, patience: int) -> None:
        exited = machine.next_exit()
        await self.signal(machine, number)
        if await self.exit_within(machine, exited, None if patience < 0 else patience):
            return
        exited = machine.next_exit()
        await self.signal(machine, SIGKILL)
        if not await self.exit_within(machine, exited, KILL_SECONDS):
            raise Internal(f"cannot stop container: {machine.doc.name}: it did not end after SIGKILL")

    @staticmethod
    async def exit_within(machine: Machine, exited: asyncio.Future[ExitStatus], seconds: float | None) -> bool:
        """Whether the container has ended before ``seconds`` are over."""
        try:
            if machine.doc.state.alive:
                await asyncio.wait_for(exited, seconds)
            return True
        except TimeoutError:
            return not machine.doc.state.alive
        finally:
            exited.cancel()

    async def pause(self, machine: Machine) -> None:
        """Freeze every process. Raises ``FailedPrecondition``."""
        async with machine.lock:
            status = machine.doc.state.status
            if status == "paused":
                raise FailedPrecondition(f"Container {machine.id} is already paused")
            if status == "restarting":
                raise FailedPrecondition(f"Container {machine.id} is restarting, wait until the container is running")
            if status != "running":
                raise FailedPrecondition(f"Container {machine.id} is not running")
            await freeze(self._registry.backend, machine.id)
            machine.set_state(status="paused")
            self._registry.publish(machine, "pause")

    async def unpause(self, machine: Machine) -> None:
        """Let the processes go on. Raises ``FailedPrecondition``."""
        async with machine.lock:
            if machine.doc.state.status != "paused":
                raise FailedPrecondition(f"Container {machine.id} is not paused")
            await thaw(self._registry.backend, machine.id)
            machine.set_state(status="running")
            self._registry.publish(machine, "unpause")

    async def resize(self, machine: Machine, height: int, width: int) -> None:
        """Give the container's terminal a size. Raises ``FailedPrecondition`` when it does not run."""
        if not machine.doc.state.alive:
            raise FailedPrecondition(f"container {machine.id} is not running")
        request = tasks_pb2.ResizePtyRequest(container_id=machine.id, width=width, height=height)
        with translated():
            await self._registry.backend.tasks.ResizePty(request)
        self._registry.publish(machine, "resize", {"height": str(height), "width": str(width)})

    async def end_for_removal(self, machine: Machine) -> None:
        """Kill what runs, so that the container can be removed."""
        machine.update(stopped_by_user=True)
        if machine.doc.state.status == "restarting":
            await self._give_up_restart(machine)
        if not machine.doc.state.alive:
            return
        exited = machine.next_exit()
        try:
            await self.signal(machine, SIGKILL)
        except GantryError as error:
            exited.cancel()
            raise type(error)(f'cannot remove container "/{machine.doc.name}": could not kill: {error}') from error
        if not await self.exit_within(machine, exited, KILL_SECONDS):
            raise Internal(
                f'cannot remove container "/{machine.doc.name}": could not kill container: '
                "tried to kill container, but did not receive an exit event"
            )
