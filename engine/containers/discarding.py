"""Taking a container's task away, and remembering where that could not be done.

Rule: a task that could not be discarded (the supervisor died meanwhile) is marked on its machine, and goes before the
container does.
"""

from __future__ import annotations

import contextlib
from typing import Any

from engine.backend import Backend, translated
from engine.containers.machine import Machine
from oci.errors import FailedPrecondition, NotFound
from protos.containerd import tasks_pb2

SIGKILL = 9
SECONDS = 30.0


async def discard(backend: Backend, machine: Machine) -> None:
    """``discard_task`` for a container that is known: a failure is remembered in ``machine.task_left``."""
    machine.task_left = True
    await discard_task(backend, machine.id)
    machine.task_left = False


async def discard_task(backend: Backend, container_id: str) -> None:
    """Kill and delete the container's task, if there is one. Idempotent."""
    tasks = backend.tasks
    request = tasks_pb2.DeleteTaskRequest(container_id=container_id)
    options: dict[str, Any] = {"timeout": SECONDS}
    try:
        with translated():
            await tasks.Delete(request, **options)
        return
    except NotFound:
        return
    except FailedPrecondition:
        pass
    with contextlib.suppress(NotFound), translated():
        with contextlib.suppress(FailedPrecondition):
            await tasks.Kill(tasks_pb2.KillRequest(container_id=container_id, signal=SIGKILL, all=True), **options)
        await tasks.Wait(tasks_pb2.WaitRequest(container_id=container_id), **options)
        await tasks.Delete(request, **options)
