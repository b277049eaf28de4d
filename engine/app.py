"""Wires the engine: one object that owns every service, starts them in order and stops them in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket

import msgspec
import structlog

from engine.api import build as build_api
from engine.api import container_files, container_logs, container_stats, unsupported
from engine.api import containers as containers_api
from engine.api import exec as exec_api
from engine.api import images as images_api
from engine.api import networks as networks_api
from engine.api import swarm as swarm_api
from engine.api.disk_usage import DiskUsageApi
from engine.api.system import SystemApi
from engine.api.volumes import VolumesApi
from engine.backend import Backend
from engine.build.service import BuildService
from engine.buildkit.front import BuildKitFront
from engine.config import LIVE, Config, registry_flags
from engine.containers.service import ContainerService
from engine.events import EventBus
from engine.http.listeners import open_listeners
from engine.http.router import Route, Router
from engine.http.server import HttpServer
from engine.images.service import ImageService
from engine.network import coexistence
from engine.network.service import NetworkService
from engine.store import Store
from engine.supervise import Supervisor
from oci import frugal
from oci.notify import notify

log = structlog.get_logger()

SETTLED_SECONDS = 1.0
"""After the start, memory that only it needed is given back."""


class _Users:
    """The image store's view of containers; ``containers`` is set once both exist."""

    containers: ContainerService | None = None

    def users_of_image(self, image_id: str) -> list[tuple[str, bool]]:
        return self.containers.users_of_image(image_id) if self.containers is not None else []


class App:
    """One engine. ``run`` returns when it was told to stop."""

    def __init__(self, config: Config, supervisor: Supervisor | None) -> None:
        """``supervisor`` is None when a containerd was given by ``--containerd``."""
        paths = config.paths
        self.config = config
        self._supervisor = supervisor
        self._stop = asyncio.Event()
        self._jobs: list[asyncio.Task[None]] = []
        self.store = Store(f"{paths.data_root}/engine.db")
        self.backend = Backend(config.containerd or paths.containerd_address)
        self.bus = EventBus()
        self.networks = NetworkService(self.store, self.bus, paths.exec_root, options=config)
        users = _Users()
        self.images = ImageService(self.backend, self.bus, users, config.insecure_registries, config.registry_mirrors)
        self.containers = ContainerService(self.store, self.backend, self.bus, self.images, self.networks, paths)
        self.containers.cgroup_parent = config.cgroup_parent
        self.containers.defaults = config.defaults
        users.containers = self.containers
        self.networks.containers = self.containers
        self.images.containers = self.containers
        self.builds = BuildService(self.store, self.images, self.containers, paths)
        self.buildkit = BuildKitFront(self.builds, paths, self.images.catalog.wanted)
        self.system = SystemApi(
            config,
            self.backend,
            self.bus,
            self.containers,
            self.images.count,
            stop_engine=self.stop_engine,
            warnings=functools.partial(coexistence.warnings, self.networks),
        )

    def routes(self) -> list[Route]:
        """Every endpoint there is."""
        volumes = VolumesApi(self.containers)
        return [
            *self.system.routes(),
            *containers_api.routes(self.containers),
            *exec_api.routes(self.containers),
            *container_logs.routes(self.containers),
            *container_files.routes(self.containers),
            *container_stats.routes(self.containers),
            *volumes.routes(),
            *DiskUsageApi(self.containers, self.images, self.builds, volumes).routes(),
            *images_api.routes(self.images),
            *build_api.routes(self.builds),
            *self.buildkit.routes(),
            *networks_api.routes(self.networks),
            *swarm_api.routes(),
            *unsupported.routes(),
        ]

    async def run(self) -> None:
        """Connect, reconcile with what survived, listen until told to stop."""
        if self._supervisor is not None:
            await self._supervisor.wait_ready()
        await self.backend.ready(20)
        await self.images.start()
        await self.networks.start()
        await self.containers.restore()
        await self.builds.start()
        server = HttpServer(Router(self.routes()))
        tasks = [asyncio.create_task(self._supervisor.watch())] if self._supervisor is not None else []
        try:
            for host in self.config.hosts:
                for listener in open_listeners(host, self.config):
                    await server.listen(listener)
            log.info("engine ready", hosts=self.config.hosts)
            notify("READY=1")
            asyncio.get_running_loop().call_later(SETTLED_SECONDS, frugal.give_back)
            await self._stop.wait()
            notify("STOPPING=1")
        finally:
            for task in tasks:
                task.cancel()
            await self.buildkit.close()
            await server.close()
            self._remove_sockets()
            await self.containers.close()
            await self.networks.close()
            await self.images.close()
            await self.backend.close()
            self.store.close()

    def _remove_sockets(self) -> None:
        """Our own socket files; one that was handed to us (``fd://``) belongs to who made it."""
        for host in self.config.hosts:
            if host.startswith("unix://"):
                with contextlib.suppress(OSError):
                    os.unlink(host.removeprefix("unix://"))

    def reload(self, config: Config) -> None:
        """Go on with ``config``, of which only ``engine.config.LIVE`` may be new."""
        self.config = config
        self.system.reconfigure(config)
        self.containers.defaults = config.defaults
        self.images.registries.reconfigure(config.insecure_registries, config.registry_mirrors)
        if self._supervisor is not None:
            flags = registry_flags(config)
            self._jobs.append(
                asyncio.create_task(self._supervisor.reconfigure(log_level=config.log_level, registry=flags))
            )
        told = {"debug": str(config.debug).lower(), "name": socket.gethostname()}
        told |= {"insecure-registries": msgspec.json.encode(config.insecure_registries).decode()}
        told |= {"registry-mirrors": msgspec.json.encode(config.registry_mirrors).decode()}
        self.bus.publish("daemon", "reload", self.system.engine_id, told)
        log.info("configuration read again", **{name: getattr(config, name) for name in LIVE})

    def stop(self) -> None:
        """End ``run``; containers go on."""
        self._stop.set()

    async def stop_engine(self, keep: bool) -> None:
        """``gantry down``: unless ``keep``, stop the containers and containerd-py and leave no trace on the host."""
        if not keep:
            await self.containers.stop_all()
            await self.networks.remove_host_state()
            if self._supervisor is not None:
                await self._supervisor.shutdown()
        # The answer to the request that asked for this goes out first.
        asyncio.get_running_loop().call_later(0.05, self._stop.set)
