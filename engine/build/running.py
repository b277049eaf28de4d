"""RUN: a container like any other, whose changes become a layer.

Rule: the container is gone when this returns, however it ends; what its mounts left behind in the file system (empty
mount points) is no part of the layer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from engine.backend import translated
from engine.build.cache import BuildCache
from engine.build.stubs import remove_stubs
from engine.build.workshop import Chain, Workshop
from engine.containers.config import ContainerConfig, CreateBody, HostConfig, Mount, NetworkingConfig
from engine.containers.logs import LogQuery
from engine.containers.machine import Machine
from engine.containers.service import ContainerService
from engine.images.assembly import NewLayer
from engine.images.commit import Committer
from engine.images.containerd import Containerd
from engine.interfaces import LocalImage
from oci.errors import AlreadyExists, GantryError
from oci.image import Descriptor, ExecutionConfig, ImageConfig, RootFS
from protos.attach import FrameDecoder
from protos.containerd import snapshots_pb2

LABEL = "io.gantry.build"
"""Label of the containers that run steps; those that a crash left are removed at the next start."""

EMPTY_LAYER = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
"""Digest of a tar with nothing in it (1,024 zero bytes)."""

HOSTNAME = "buildkitsandbox"


class StepFailed(GantryError):
    """A command ended with another status than 0; clients exit with ``exit_status``."""

    def __init__(self, shown: str, status: int) -> None:
        super().__init__(f"The command '{shown}' returned a non-zero code: {status}")
        self.shown = shown
        self.exit_status = status


class Command(NamedTuple):
    """One RUN, all of it resolved. ``shown`` is how the command reads in messages."""

    words: tuple[str, ...]
    environment: tuple[str, ...]
    user: str
    directory: str
    network: str
    privileged: bool
    mounts: tuple[Mount, ...]
    shown: str


class Runner:
    """Runs commands of builds."""

    def __init__(
        self,
        containers: ContainerService,
        containerd: Containerd,
        committer: Committer,
        workshop: Workshop,
        cache: BuildCache,
    ) -> None:
        self._containers = containers
        self._containerd = containerd
        self._committer = committer
        self._workshop = workshop
        self._cache = cache

    async def sweep(self) -> None:
        """Remove what builds of an earlier life left."""
        for machine in list(self._containers.machines.values()):
            if LABEL in (machine.doc.config.labels or {}):
                with contextlib.suppress(GantryError):
                    await self._containers.remover.remove(machine, force=True, volumes=True)

    async def run(
        self, chain: Chain, platform: ImageConfig, command: Command, host: HostConfig, say: Callable[[bytes, int], None]
    ) -> NewLayer | None:
        """Run ``command`` on ``chain``; ``say(bytes, stream)`` gets its output. Raises ``StepFailed``.

        None when it changed nothing; else the snapshot of the new chain exists when this returns.
        """
        machine = await self._create(chain, platform, command, host)
        try:
            status = await self._finish(machine, say)
            if status:
                raise StepFailed(command.shown, status)
            return await self._keep(machine, chain)
        finally:
            await asyncio.shield(self._remove(machine))

    async def _create(self, chain: Chain, platform: ImageConfig, command: Command, host: HostConfig) -> Machine:
        nothing = Descriptor("", "", 0)
        config = ImageConfig(platform.architecture, platform.os, RootFS(()), config=ExecutionConfig())
        image = LocalImage("", "", nothing, nothing, config, chain.id, self._containerd.snapshotter)
        body = CreateBody(
            ContainerConfig(
                image="build",
                hostname=HOSTNAME,
                user=command.user,
                env=command.environment,
                cmd=command.words,
                working_dir=command.directory,
                labels={LABEL: chain.id},
            ),
            msgspec.structs.replace(
                host, network_mode=command.network, privileged=command.privileged, mounts=command.mounts or None
            ),
            NetworkingConfig(),
        )
        machine, _ = await self._containers.maker.create("", body, image=image)
        return machine

    async def _finish(self, machine: Machine, say: Callable[[bytes, int], None]) -> int:
        """Start, pass the output on, and the exit status."""
        exited = machine.next_exit()
        await self._containers.start(machine)
        decoder = FrameDecoder()
        _, stream = self._containers.logs.open(machine.id, LogQuery(stdout=True, stderr=True, follow=True))
        async for data in stream:
            for number, piece in decoder.feed(data):
                say(piece, number)
        return (await exited).code

    async def _keep(self, machine: Machine, chain: Chain) -> NewLayer | None:
        """The container's changes as a layer, and its snapshot as the next chain's; None without a change."""
        async with self._workshop.tree(chain) as before:
            mounts = machine.rootfs or ()
            await asyncio.to_thread(remove_stubs, mounts, before, [point.destination for point in machine.doc.mounts])
        layer = await self._committer.layer_of(machine.doc, self._cache.metadata)
        if layer.diff_id == EMPTY_LAYER:
            return None
        name = chain.plus(layer).id
        commit = snapshots_pb2.CommitSnapshotRequest(snapshotter=machine.doc.snapshotter, name=name, key=machine.id)
        with contextlib.suppress(AlreadyExists), translated():
            await self._containerd.backend.snapshots.Commit(commit, metadata=self._cache.metadata)
        self._cache.note_snapshot(name, chain.id, layer.diff_id)
        return layer

    async def _remove(self, machine: Machine) -> None:
        if machine.id in self._containers.machines:
            await self._containers.remover.remove(machine, force=True, volumes=True)


def shown_command(words: Sequence[str]) -> str:
    """A command as messages and history show it."""
    return " ".join(words)
