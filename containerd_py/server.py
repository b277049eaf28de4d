"""containerd-py as a running daemon: every room of this package wired together and served on one unix socket.

Rule: nothing is answered before the tasks of an earlier life have been found again, so no client ever sees a daemon
that has forgotten its containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable

import structlog

from containerd_py.checkpoints import Checkpoints
from containerd_py.door import Door
from containerd_py.exchange import LocalExchange
from containerd_py.interfaces import ContainerStore
from containerd_py.metadata.sandboxes import Sandboxes
from containerd_py.metrics.rpcs import RPCS
from containerd_py.sandboxes.bundles import SandboxBundles
from containerd_py.sandboxes.controller import SandboxController
from containerd_py.sandboxes.shims import SandboxShims
from containerd_py.services.calls import Calls
from containerd_py.services.events import EventsService
from containerd_py.services.sandbox_controller import SandboxControllerService
from containerd_py.services.tasks import TasksService
from containerd_py.settings import Settings
from containerd_py.stores import open_stores, serve_stores
from containerd_py.tasks import foreign, helpers, shim_events
from containerd_py.tasks.bundle import BundleStore
from containerd_py.tasks.launcher import HelperClient, Zygote
from containerd_py.tasks.manager import TaskManager
from containerd_py.tasks.reaper import ENDED, Reaper
from containerd_py.tasks.recovery import Recovery
from oci import frugal, trace

HELPER_RETRY_SECONDS = 2.0
SETTLED_SECONDS = 1.0
"""After the start, memory that only it needed is given back."""

_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "error": 40, "fatal": 50, "panic": 50}
_log = structlog.get_logger("containerd_py.server")


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    configure_log(settings.log_level)
    if trace.directory:
        from containerd_py import traced

        traced.follow()
    faulthandler.register(signal.SIGUSR1)
    if settings.grpc_histogram:
        RPCS.seconds = {}
    asyncio.run(_serve(settings))


def configure_log(level: str) -> None:
    """One line an event on standard error, with logfmt-like fields."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(_LEVELS[level], logging.WARNING), stream=sys.stderr)


async def _serve(settings: Settings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with contextlib.AsyncExitStack() as stack:
        reaper = Reaper(f"{settings.state}/{ENDED}")
        reaper.start()
        stack.callback(reaper.close)
        exchange = LocalExchange()
        stores = open_stores(settings, exchange, stack)
        calls = Calls()
        serve_stores(calls, stores, settings)
        close_events = await shim_events.serve(settings.ttrpc_address, exchange, calls)
        stack.callback(close_events)
        manager, sandboxes = await start_tasks(settings, stores.containers, exchange, reaper, stack)
        checkpoints = Checkpoints(stores.content, stores.workers, stores.containers, f"{settings.state}/checkpoints")
        controller = SandboxControllerService(sandboxes, Sandboxes(stores.database))
        calls.add(TasksService(manager, checkpoints, stores.mounts), EventsService(exchange), controller)
        stores.collector.start()
        door = Door(settings.address, settings.tcp, calls.servicers)
        await door.listen()
        if settings.metrics_address:
            from containerd_py.metrics import endpoint  # h11 and what it brings, for those who want it

            stack.callback(await endpoint.serve(settings.metrics_address, endpoint.Page(manager, exchange)))
        calls.open()
        asyncio.get_running_loop().call_later(SETTLED_SECONDS, frugal.give_back)
        _log.info("serving", address=settings.address, root=settings.root, state=settings.state, pid=os.getpid())
        await stopping.wait()
        _log.info("stopping; containers go on", tasks=len(manager.init_pids()))
        exchange.close()
        await door.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(settings.ttrpc_address)


async def start_tasks(
    settings: Settings,
    containers: ContainerStore,
    exchange: LocalExchange,
    reaper: Reaper,
    stack: contextlib.AsyncExitStack,
) -> tuple[TaskManager, SandboxController]:
    """Tasks and sandboxes, with all of an earlier life in them."""
    zygote_client = _helper(helpers.ZYGOTE, settings)
    keeper_client = _helper(helpers.KEEPER, settings)
    for client in (zygote_client, keeper_client):
        await client.connect()
        client.on_lost = functools.partial(_bring_back, client)
        stack.callback(client.close)
    debug = settings.log_level in ("trace", "debug")
    zygote = Zygote(zygote_client, keeper_client, address=settings.address, ttrpc=settings.ttrpc_address, debug=debug)
    daemon = foreign.Daemon(settings.address, settings.ttrpc_address, publish_program(), debug)
    bundles = BundleStore(settings.state)
    recovery = Recovery(bundles, zygote, daemon, exchange.publish, reaper.status)
    manager = TaskManager(bundles, containers, zygote, recovery, daemon)
    stack.callback(manager.close)
    sandbox_bundles = SandboxBundles(settings.state)
    shims = SandboxShims(sandbox_bundles, zygote, daemon)
    sandboxes = SandboxController(sandbox_bundles, shims, manager, exchange.publish)
    stack.callback(sandboxes.close)
    await sandboxes.load()
    await manager.load()
    reaper.containers = manager.init_pids
    return manager, sandboxes


def _helper(name: str, settings: Settings) -> HelperClient:
    restart: Callable[[], int] = lambda: _respawn(name, settings)  # noqa: E731 - its type is worth a name
    return HelperClient(name, helpers.socket_path(settings.state, name), restart)


def _respawn(name: str, settings: Settings) -> int:
    _log.warning("helper is gone, starting another", helper=name)
    return helpers.spawn(name, settings.state, settings.helper_log)


def _bring_back(client: HelperClient) -> None:
    """Have a new helper at once when one dies: shims park their descriptors with it, and the next run finds it warm."""

    def ended(connecting: asyncio.Task[None]) -> None:
        if not connecting.cancelled() and (error := connecting.exception()) is not None:
            _log.error("helper not brought back", helper=client.name, error=str(error))
            asyncio.get_running_loop().call_later(HELPER_RETRY_SECONDS, _bring_back, client)

    asyncio.get_running_loop().create_task(client.connect()).add_done_callback(ended)


def publish_program() -> str:
    """The program shims are told as ``-publish-binary``: our console script where it is installed."""
    script = os.path.join(os.path.dirname(sys.executable), "containerd-py")
    return script if os.access(script, os.X_OK) else os.path.abspath(sys.argv[0])
