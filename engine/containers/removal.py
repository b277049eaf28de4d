"""Removing containers, one or all that are not in use.

Rule: "removing" is on disk before the first thing goes and the document goes last, so a removal that was interrupted is
finished at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time

import structlog

from engine.backend import translated
from engine.containers.discarding import discard
from engine.containers.machine import Machine
from engine.containers.registry import Registry
from engine.containers.stopping import Stopper
from oci.errors import FailedPrecondition, GantryError, NotFound
from protos.containerd import containers_pb2, snapshots_pb2

log = structlog.get_logger()

TREE_PAUSES = (0.05, 0.2, 1.0)


class Remover:
    """Takes containers away."""

    def __init__(self, registry: Registry, stopper: Stopper) -> None:
        self._registry = registry
        self._stopper = stopper

    async def remove(self, machine: Machine, *, force: bool = False, volumes: bool = False) -> None:
        """Remove ``machine``; ``volumes``: its anonymous volumes as well. Raises ``FailedPrecondition``."""
        if machine.removing:
            raise FailedPrecondition(f"removal of container {machine.id} is already in progress")
        state = machine.doc.state
        if state.running and not force:
            advice = (
                "and must be unpaused first"
                if state.status == "paused"
                else ": stop the container before removing or force remove"
            )
            text = f"container is {state.status} {advice}".replace(" :", ":")
            raise FailedPrecondition(f'cannot remove container "/{machine.doc.name}": {text}')
        machine.removing = True
        try:
            if machine.doc.state.running:
                await self._stopper.end_for_removal(machine)
            async with machine.lock:
                await self._take_away(machine, volumes)
        except BaseException as error:
            machine.removing = False
            with contextlib.suppress(Exception):
                if machine.doc.state.status == "removing":
                    machine.set_state(status="dead", error=str(error))
            machine.tell_removed(str(error) or type(error).__name__)
            raise

    async def _take_away(self, machine: Machine, volumes: bool) -> None:
        registry = self._registry
        machine.cancel_restart()
        machine.set_state(status="removing")
        if machine.task_left:
            await discard(registry.backend, machine)
        for wait in registry.leaving:
            await wait(machine)
        await asyncio.gather(
            self.forget_record(machine.id, skip=not machine.recorded),
            self.remove_snapshot(machine.doc.snapshotter, machine.id),
            remove_tree(registry.directory(machine.id)),
        )
        if volumes:
            await self._remove_anonymous(machine)
        registry.networks.forget(machine.id)
        self.drop(machine)
        registry.publish(machine, "destroy")
        machine.tell_removed()

    def drop(self, machine: Machine) -> None:
        """The container leaves the store and the indexes."""
        registry = self._registry
        registry.store.delete("container", machine.id)
        registry.machines.pop(machine.id, None)
        registry.names.release(machine.doc.name, machine.id)
        registry.names.forget(machine.id)

    async def forget_record(self, container_id: str, *, skip: bool = False) -> None:
        """Delete containerd's record. Idempotent."""
        if skip:
            return
        request, backend = containers_pb2.DeleteContainerRequest(id=container_id), self._registry.backend
        with contextlib.suppress(NotFound), translated():
            await backend.containers.Delete(request, metadata=backend.later)

    async def remove_snapshot(self, snapshotter: str, key: str) -> None:
        """Delete a container's snapshot. Idempotent."""
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
        with contextlib.suppress(NotFound), translated():
            await self._registry.backend.snapshots.Remove(request)

    async def _remove_anonymous(self, machine: Machine) -> None:
        for point in machine.doc.mounts:
            if point.type != "volume" or not point.anonymous:
                continue
            if self._registry.volumes.users(point.name) != [machine.id]:
                continue
            self._registry.released_volumes.add((machine.id, point.name))
            try:
                await self._registry.volumes.remove(point.name)
            except GantryError as error:
                log.warning("an anonymous volume stays", volume=point.name, error=str(error))
            finally:
                self._registry.released_volumes.discard((machine.id, point.name))

    async def prune(self, filters: dict[str, list[str]], until: int | None) -> tuple[list[str], int]:
        """Remove every container that does not run and matches; (ids, bytes won back)."""
        gone: list[str] = []
        reclaimed = 0
        for machine in list(self._registry.machines.values()):
            doc = machine.doc
            if doc.state.running or machine.removing or not _selected(doc.config.labels or {}, filters):
                continue
            if doc.created_at > (until if until is not None else time.time_ns()):
                continue
            size = await self._written(machine)
            try:
                await self.remove(machine)
            except GantryError as error:
                log.warning("container not pruned", container=machine.id, error=str(error))
                continue
            gone.append(machine.id)
            reclaimed += size
        self._registry.bus.publish("container", "prune", "", {"reclaimed": str(reclaimed)})
        return gone, reclaimed

    async def _written(self, machine: Machine) -> int:
        request = snapshots_pb2.UsageRequest(snapshotter=machine.doc.snapshotter, key=machine.id)
        try:
            with translated():
                return int((await self._registry.backend.snapshots.Usage(request)).size)
        except GantryError:
            return 0


async def remove_tree(directory: str) -> None:
    """Remove a container's files. Whoever may still be making one there, as a shim its log, is waited for."""
    for pause in TREE_PAUSES:
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        if not os.path.lexists(directory):
            return
        await asyncio.sleep(pause)
    log.error("a container's directory cannot be removed", directory=directory)


def _selected(labels: dict[str, str], filters: dict[str, list[str]]) -> bool:
    wanted, unwanted = filters.get("label", ()), filters.get("label!", ())
    return all(has_label(labels, text) for text in wanted) and not any(has_label(labels, text) for text in unwanted)


def has_label(labels: dict[str, str], text: str) -> bool:
    """Whether ``labels`` has ``key`` or ``key=value``."""
    key, separator, value = text.partition("=")
    return key in labels and (not separator or labels[key] == value)
