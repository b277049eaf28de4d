"""The mounts of a task's rootfs that no shim knows: made when it is created, taken back when it is deleted.

Rule: they are an activation with the task's name, which refers to its container, so that the collection takes it back
where a kill came in between. A task whose rootfs the kernel mounts as it is costs nothing here.
"""

from __future__ import annotations

import asyncio

import structlog

from containerd_py.interfaces import Scope
from containerd_py.mounts.manager import MountManager
from containerd_py.mounts.plan import needs_manager
from oci import errors
from protos.containerd.tasks_pb2 import CreateTaskRequest

_BACK_REFERENCE = "containerd.io/gc.bref.container"

_log = structlog.get_logger("containerd_py.mounts.tasks")


class TaskMounts:
    """Activations of tasks."""

    def __init__(self, manager: MountManager) -> None:
        self._manager = manager

    async def make(self, scope: Scope, request: CreateTaskRequest) -> bool:
        """Make what ``request`` needs; its rootfs is then what is left to the shim. Whether something was made.

        One that is there already is used again: its container has not gone meanwhile.
        """
        if not needs_manager(request.rootfs):
            return False
        name = request.container_id
        labels = {_BACK_REFERENCE: name}
        try:
            info = await asyncio.to_thread(self._manager.activate, scope, name, list(request.rootfs), labels)
            made = True
        except errors.AlreadyExists:
            info, made = self._manager.info(scope, name), False
        del request.rootfs[:]
        request.rootfs.extend(info.system)
        return made

    async def take_back(self, scope: Scope, name: str) -> None:
        """Take back what was made for the task; what cannot be now goes with its container."""
        if not self._manager.has(scope, name):
            return
        try:
            await asyncio.to_thread(self._manager.deactivate, scope, name)
        except (errors.GantryError, OSError) as error:
            _log.warning("mounts of a task not removed yet", namespace=scope.namespace, id=name, error=str(error))
