"""Waits for interfaces of ended containers to go, off everybody's path.

Rule: an address is free only once the interface that had it is gone. The kernel removes a namespace's interfaces
together with it, in batches and without us; deleting one ourselves costs 15 to 35 ms of waiting, so that is done only
where another process keeps the namespace alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import structlog

from engine.network.kernel import HostKernel
from engine.network.model import Address, Endpoint
from engine.network.netlink import GONE, NETLINK_ROUTE, Netlink, NetlinkError
from engine.network.rtnl import delete_link

log = structlog.get_logger()

PAUSES = (0.02, 0.05, 0.1, 0.3)
"""Seconds between looks; after the last one the interface is deleted."""


class Reaper:
    """Endpoints whose interfaces are on their way out."""

    def __init__(
        self,
        kernel: HostKernel,
        run: Callable[..., Awaitable[Any]],
        release: Callable[[str, Sequence[str]], None],
    ) -> None:
        """``run`` puts work on the kernel's worker thread; ``release(network id, addresses)`` frees addresses."""
        self._kernel = kernel
        self._run = run
        self._release = release
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: dict[str, Endpoint] = {}

    def add(self, endpoints: Iterable[Endpoint]) -> None:
        """Free the addresses of ``endpoints`` when their interfaces are gone; returns at once."""
        waiting = {endpoint.veth: endpoint for endpoint in endpoints if endpoint.veth}
        self._leaving.update(waiting)
        if waiting:
            task = asyncio.create_task(self._wait(waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def hurry(self, network_id: str, addresses: Iterable[Address]) -> None:
        """Free ``addresses`` now if they wait for an interface to go. Raises ``NetlinkError``."""
        wanted = {str(address) for address in addresses}
        for endpoint in tuple(self._leaving.values()):
            if endpoint.network_id == network_id and not wanted.isdisjoint(endpoint.addresses):
                await self.delete((endpoint.veth,))
                self._free({endpoint.veth: endpoint}, set())

    async def drain(self) -> None:
        """Wait until all are gone."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def _wait(self, waiting: dict[str, Endpoint]) -> None:
        try:
            for pause in PAUSES:
                await asyncio.sleep(pause)
                self._free(waiting, await self._run(self._kernel.present, tuple(waiting)))
                if not waiting:
                    return
            await self.delete(tuple(waiting))
            self._free(waiting, set())
        except OSError as error:
            # The addresses stay taken; the sweep at the next start removes the interfaces.
            log.warning("interfaces of an ended container could not be removed", veth=sorted(waiting), error=str(error))

    def _free(self, waiting: dict[str, Endpoint], present: set[str]) -> None:
        for veth in [name for name in waiting if name not in present]:
            endpoint = waiting.pop(veth)
            # Freed in a hurry before, its address may be somebody else's by now.
            if self._leaving.pop(veth, None) is not None:
                self._release(endpoint.network_id, endpoint.addresses)

    async def delete(self, names: Iterable[str]) -> None:
        """Delete interfaces on a thread of their own. Idempotent; raises ``NetlinkError``."""
        wanted = tuple(names)
        if wanted:
            await asyncio.to_thread(_delete, wanted)


def _delete(names: tuple[str, ...]) -> None:
    netlink = Netlink(NETLINK_ROUTE)
    try:
        for name in names:
            try:
                netlink.request(delete_link(name))
            except NetlinkError as error:
                if error.errno not in GONE:
                    raise
    finally:
        netlink.close()
