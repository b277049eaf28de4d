"""Bridges of removed networks: out of use at once, deleted by the kernel in its own time.

Rule: a network is removed when its bridge carries nothing any more, which costs a millisecond. Deleting the bridge
waits for two RCU grace periods, so that is done one after another, off everybody's path. It is on disk before, under
kind ``retired`` by network id, so a start after a kill goes on; a new network of the same bridge name waits for it.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from engine.network.drivers import driver_of
from engine.network.kernel import HostKernel
from engine.network.model import Network
from engine.network.netlink import NetlinkError
from engine.network.plans import BridgePlan
from engine.store import Store

if TYPE_CHECKING:
    from engine.network.service import NetworkService

log = structlog.get_logger()

KIND = "retired"
QUIET = 0.1
"""Seconds without a removal before deletion begins: a deletion under way holds up the next removal."""


class Retired(msgspec.Struct, frozen=True):
    """A bridge that is to be deleted. ``mac`` (text) tells it from a later one of the same name."""

    name: str
    mac: str


class Retirement:
    """The bridges on their way out."""

    def __init__(
        self,
        store: Store,
        run: Callable[..., Awaitable[Any]],
        delete: Callable[[Iterable[str]], Awaitable[None]],
    ) -> None:
        """``run`` puts work on the kernel's worker thread; ``delete`` removes interfaces on another one."""
        self._store = store
        self._run = run
        self._delete = delete
        self._waiting: dict[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def restore(self, kernel: HostKernel, networks: Collection[str], bridges: Collection[str]) -> None:
        """At the daemon's start: go on with what a kill interrupted.

        ``networks`` (ids) whose removal did not come to its end keep their bridges; so do networks that use one of
        ``bridges`` by now.
        """
        for network_id, body in list(self._store.all(KIND)):
            retired = msgspec.json.decode(body, type=Retired)
            kept = network_id in networks or retired.name in bridges
            if not kept and await self._run(kernel.has_bridge, retired.name, bytes.fromhex(retired.mac)):
                self.leave(network_id, retired.name)
            else:
                self._store.delete(KIND, network_id)

    def note(self, network_id: str, plan: BridgePlan) -> None:
        """Record that the network's bridge is to go, before it is taken out of use."""
        self._store.put(KIND, network_id, msgspec.json.encode(Retired(plan.name, plan.mac.hex())))

    def forget(self, network_id: str) -> None:
        """Its bridge is gone, or was never there. Idempotent."""
        self._store.delete(KIND, network_id)

    def leave(self, network_id: str, name: str) -> None:
        """Delete a recorded bridge soon; returns at once."""
        self._waiting[name] = network_id
        self._postpone()
        self._timer = asyncio.get_running_loop().call_later(QUIET, self._begin)

    def _postpone(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._postpone()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def gone(self, name: str) -> None:
        """Wait until no bridge of this name is on its way out: a new one may be made. Raises ``NetlinkError``."""
        async with self._turn:
            await self._next(name)

    def stop(self) -> None:
        """The daemon ends: the next one goes on with what is left. Idempotent."""
        self._postpone()
        if self._task is not None:
            self._task.cancel()

    async def drain(self) -> None:
        """Wait until all are gone, without waiting for quiet."""
        while self._waiting or (self._task is not None and not self._task.done()):
            self._begin()
            assert self._task is not None  # just begun
            await asyncio.wait((self._task,))

    async def _work(self) -> None:
        """One after another, until a removal comes in between."""
        while self._waiting and self._timer is None:
            async with self._turn:
                name = next(iter(self._waiting), "")
                try:
                    await self._next(name)
                except OSError as error:
                    # Its record stays: the next start tries again.
                    log.warning("the bridge of a removed network could not be deleted", bridge=name, error=str(error))

    async def _next(self, name: str) -> None:
        network_id = self._waiting.pop(name, None)
        if network_id is not None:
            await self._delete((name,))
            self._store.delete(KIND, network_id)


async def take_down(service: NetworkService, network: Network) -> None:
    """Its interface first, then the record: a kill in between leaves a network that is made again.

    The caller holds ``service.planning``: no container finds the network meanwhile, and no new one gets what it had.
    """
    plan = service.registry.host_plan(network)
    service.registry.hide(network)
    try:
        if isinstance(plan, BridgePlan):
            await _retire(service, network, plan)
        elif plan is not None:
            await service.run(service.kernel.remove, plan)
    finally:
        service.registry.forget(network)


async def _retire(service: NetworkService, network: Network, plan: BridgePlan) -> None:
    service.retirement.note(network.id, plan)
    if await service.run(service.kernel.retire, plan):
        service.retirement.leave(network.id, plan.name)
    else:
        service.retirement.forget(network.id)
    rules = driver_of(network).rules(network)
    if rules is None:
        return
    try:
        await service.run(service.kernel.withdraw_rules, rules)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        # Somebody flushed the rule set, or the network never came into it.
        await service.restore_rules(without=network.id)
