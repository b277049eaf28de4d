"""Creating a container: check everything, record it, prepare its snapshot and volumes, and only then answer.

Rule: the document is in the store as "creating" before the first thing is made, so a create that was interrupted is
swept at the next start; what fails half-way is undone before the error is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import msgspec
import structlog

from engine.containers import copyup, creation, mounts
from engine.containers.config import CreateBody, HostConfig
from engine.containers.launch import sandbox_request
from engine.containers.machine import CREATING, Machine
from engine.containers.model import Container, MountPoint, State
from engine.containers.names import check_name, new_id
from engine.containers.registry import Registry, rootfs_mounts
from engine.containers.removal import Remover
from engine.interfaces import LocalImage
from engine.platforms import host_platform, spelled, suits
from engine.spec import validate
from oci.errors import GantryError, InvalidArgument, NotFound
from oci.image import Platform
from protos.containerd import snapshots_pb2

log = structlog.get_logger()

ROOT_LABEL = "containerd.io/gc.root"
"""Keeps a snapshot from the garbage collector; ours are removed by name."""


class Maker:
    """Makes containers."""

    def __init__(self, registry: Registry, remover: Remover) -> None:
        self._registry = registry
        self._remover = remover

    async def create(
        self, name: str, body: CreateBody, platform: Platform | None = None, image: LocalImage | None = None
    ) -> tuple[Machine, list[str]]:
        """The new machine and the warnings for the client. ``image`` stands in for the one that ``body`` names.

        Raises ``NotFound`` (image, network), ``AlreadyExists`` (name), ``InvalidArgument`` with Docker's texts.
        """
        if not body.config.image:
            raise InvalidArgument("config.Image is required")
        wanted = check_name(name) if name else ""
        image = image or await self._registry.images.resolve(body.config.image, platform)
        container_id = new_id()
        body, points = self._checked(container_id, body, image)
        chosen = self._reserve(wanted, container_id)
        try:
            doc = self._document(container_id, chosen, body, image)
            # A network that is not there is told at the start: clients take "not found" here for the image.
            with contextlib.suppress(NotFound):
                self._registry.networks.validate(sandbox_request(doc))
        except BaseException:
            self._free(chosen, container_id)
            raise
        machine = await self._made(doc, image, points)
        self._registry.publish(machine, "create")
        told = warnings(doc.host)
        if platform is None and not suits(image.config, host_platform()):
            told.append(
                f"The requested image's platform ({spelled(image.config)}) does not match the detected host platform "
                f"({spelled(host_platform())}) and no specific platform was requested"
            )
        return machine, told

    def _checked(self, container_id: str, body: CreateBody, image: LocalImage) -> tuple[CreateBody, list[MountPoint]]:
        """Image values and defaults filled in, all of it valid, and the mounts it asks for."""
        host = creation.with_defaults(body.host, self._registry.defaults)
        self._registry.defaults.binary(host.runtime)
        config = creation.merged(body.config, image.config.config)
        body = CreateBody(config, host, body.networking)
        creation.check(body)
        creation.command(config)
        validate(config, host)
        points = mounts.plan(config, host, lambda reference: self._registry.find(reference).doc)
        if not host.network_mode.startswith("container:"):
            config = msgspec.structs.replace(config, hostname=creation.hostname(config, host, container_id))
        return CreateBody(config, host, body.networking), points

    def _reserve(self, wanted: str, container_id: str) -> str:
        if not wanted:
            return self._registry.names.reserve_random(container_id)
        self._registry.names.reserve(wanted, container_id)
        return wanted

    def _free(self, name: str, container_id: str) -> None:
        self._registry.names.release(name, container_id)
        self._registry.names.forget(container_id)

    @staticmethod
    def _document(container_id: str, name: str, body: CreateBody, image: LocalImage) -> Container:
        path, args = creation.command(body.config)
        return Container(
            id=container_id,
            name=name,
            created_at=time.time_ns(),
            image_id=image.id,
            image_manifest=image.manifest,
            chain_id=image.chain_id,
            snapshotter=image.snapshotter,
            platform=image.config.os or "linux",
            path=path,
            args=args,
            config=body.config,
            host=body.host,
            networking=body.networking,
            state=State(status=CREATING),
        )

    async def _made(self, doc: Container, image: LocalImage, points: list[MountPoint]) -> Machine:
        registry = self._registry
        machine = Machine(registry.store, doc)
        machine.recorded = False
        machine.save()
        before = {volume.name for volume in registry.volumes.all()} if points else set()
        done: tuple[MountPoint, ...] = ()
        try:
            await self._prepare(machine)
            done = mounts.realize(points, registry.volumes)
            if any(point.copy_up for point in done):
                await copyup.fill(machine.rootfs or (), done)
                done = tuple(msgspec.structs.replace(point, copy_up=False) for point in done)
            machine.update(mounts=done, state=State(status="created"))
        except BaseException as error:
            await asyncio.shield(self._unmade(machine, {p.name for p in done if p.anonymous} - before))
            if isinstance(error, OSError):
                raise InvalidArgument(
                    f"error while creating mount source path '{error.filename}': {error.strerror}"
                ) from error
            raise
        registry.machines[doc.id] = machine
        return machine

    async def _prepare(self, machine: Machine) -> None:
        """The container's own writable layer, and the directory for its files."""
        doc = machine.doc
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=doc.snapshotter, key=doc.id, parent=doc.chain_id, labels={ROOT_LABEL: "gantry"}
        )
        os.makedirs(self._registry.directory(doc.id), mode=0o710, exist_ok=True)
        machine.rootfs = rootfs_mounts(await self._registry.backend.prepare(request))

    async def _unmade(self, machine: Machine, volumes: set[str]) -> None:
        try:
            await self._remover.remove_snapshot(machine.doc.snapshotter, machine.id)
            for name in volumes:
                await self._registry.volumes.remove(name)
        except GantryError as error:
            log.warning("a failed create is swept at the next start", container=machine.id, error=str(error))
            self._free(machine.doc.name, machine.id)
            return
        os.rmdir(self._registry.directory(machine.id))
        self._remover.drop(machine)


def warnings(host: HostConfig) -> list[str]:
    """What this host cannot do of what was asked, in Docker's words."""
    told = []
    if host.oom_kill_disable and not host.memory:
        told.append(
            "OOM killer is disabled for the container, but no memory limit is set, "
            "this can result in the system running out of resources."
        )
    if host.network_mode == "host" and host.port_bindings:
        told.append("Published ports are discarded when using host network mode")
    return told
