"""The container service: the heart of the Docker API, as ``engine.api`` calls it.

Rule: this class only wires; what is done to containers is in the modules around it, one per thing done.
"""

from __future__ import annotations

import asyncio

import structlog

from engine.backend import Backend
from engine.containers.changing import Changer
from engine.containers.exec import Execs
from engine.containers.exits import Exits
from engine.containers.health import Health
from engine.containers.launch import Launcher, StartUnknown, sandbox_request
from engine.containers.listing import Listing
from engine.containers.logs import Logs
from engine.containers.logs_forward import Forwarding
from engine.containers.machine import Machine
from engine.containers.making import Maker
from engine.containers.registry import Registry
from engine.containers.removal import Remover
from engine.containers.restoring import Restorer
from engine.containers.sizes import Sizes
from engine.containers.stopping import Stopper
from engine.events import EventBus
from engine.interfaces import Images, Networks, NetworkTarget
from engine.store import Store
from oci.errors import FailedPrecondition, GantryError
from oci.hostpaths import HostPaths

log = structlog.get_logger()


class ContainerService(Registry):
    """All containers of this engine. Shared state and look-ups are in ``Registry``."""

    def __init__(
        self, store: Store, backend: Backend, bus: EventBus, images: Images, networks: Networks, paths: HostPaths
    ) -> None:
        super().__init__(store, backend, bus, images, networks, paths)
        self.execs = Execs(self)
        self.health = Health(self, self.execs)
        self.logs = Logs(self)
        self.forwarding = Forwarding(self)
        self.stopper = Stopper(self)
        self.remover = Remover(self, self.stopper)
        self.launcher = Launcher(self)
        self.exits = Exits(self, self.launcher, self.remover)
        self.maker = Maker(self, self.remover)
        self.changer = Changer(self)
        self.listing = Listing(self)
        self.sizes = Sizes(backend)
        self._restorer = Restorer(self, self.launcher, self.remover, self.exits)

    # The daemon's life

    async def restore(self) -> None:
        """Reconcile with what survived the last daemon, and follow the supervisor's events from then on."""
        self._restorer.load()
        await self.exits.follow(self._restorer.tasks_found)
        await self._restorer.finish()
        self.execs.restore()
        self.exits.spawn(self.forwarding.catch_up())

    async def stop_all(self) -> None:
        """Stop every running container as at the host's shutdown: what policies go by stays as it is."""
        running = [m for m in self.machines.values() if m.doc.state.running]
        for machine in running:
            machine.keep_on_exit = True
        await asyncio.gather(*(self._stop_for_shutdown(machine) for machine in running))

    async def _stop_for_shutdown(self, machine: Machine) -> None:
        by_user = machine.doc.stopped_by_user
        try:
            await self.stopper.stop(machine)
            async with machine.lock:
                machine.update(stopped_by_user=by_user)
        except GantryError as error:
            log.error("a container did not stop", container=machine.id, error=str(error))

    async def close(self) -> None:
        """Let go of everything; containers go on."""
        await self.exits.close()
        await self.health.close()
        await self.execs.close()
        await self.forwarding.close()
        self.logs.close()

    # Operations

    async def start(self, machine: Machine) -> bool:
        """Start a container; False when it runs already. Raises in Docker's words.

        While nobody knows what became of an earlier start, this one joins it.
        """
        joined, begun = machine.unsettled, machine.doc.state.started_at
        async with machine.lock:
            if joined and machine.doc.state.started_at != begun:
                return True
            status = machine.doc.state.status
            if status == "paused":
                raise FailedPrecondition("cannot start a paused container, try unpause instead")
            if status == "running":
                return False
            if machine.removing or status in ("removing", "dead"):
                raise FailedPrecondition("container is marked for removal and cannot be started")
            machine.update(stopped_by_user=False)
            try:
                await self.launcher.start(machine)
            except StartUnknown:
                self.exits.settle_later(machine)
                raise
            except BaseException:
                if status == "restarting":
                    machine.set_state(status="exited")
                if machine.doc.host.auto_remove and not machine.removing:
                    self.exits.spawn(self.remover.remove(machine, force=True, volumes=True))
                raise
        return True

    async def restart(self, machine: Machine, signal: str = "", seconds: int | None = None) -> None:
        """Stop and start again; what asked to be removed at its end stays."""
        machine.keep_on_exit = True
        try:
            await self.stopper.stop(machine, signal, seconds)
        finally:
            machine.keep_on_exit = False
        await self.start(machine)
        self.publish(machine, "restart")

    # What other rooms ask

    def counts(self) -> tuple[int, int, int]:
        """Numbers of running, paused and stopped containers."""
        states = [m.doc.state for m in self.machines.values()]
        paused = sum(s.status == "paused" for s in states)
        running = sum(s.running for s in states) - paused
        return running, paused, len(states) - running - paused

    def users_of_image(self, image_id: str) -> list[tuple[str, bool]]:
        """(container id, running) of every container made from ``image_id``."""
        return [(m.id, m.doc.state.running) for m in self.machines.values() if m.doc.image_id == image_id]

    def network_target(self, reference: str) -> NetworkTarget:
        """The container as networks need it; raises ``NotFound``."""
        doc = self.find(reference).doc
        return NetworkTarget(sandbox_request(doc), doc.state.alive)
