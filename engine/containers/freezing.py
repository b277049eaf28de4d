"""Pausing a container's task and letting it go on, with a supervisor that may die at any instant.

Rule: where the answer was lost, the task itself says whether it happened; nothing is asked for twice blindly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from engine.backend import Backend, translated
from engine.calls import TRIES, HungUp
from protos.containerd import task_types_pb2, tasks_pb2


async def freeze(backend: Backend, container_id: str) -> None:
    """Stop every process. Raises ``NotFound``, ``FailedPrecondition``."""
    request = tasks_pb2.PauseTaskRequest(container_id=container_id)
    await _made_so(backend, container_id, task_types_pb2.PAUSED, lambda: backend.tasks.Pause(request))


async def thaw(backend: Backend, container_id: str) -> None:
    """Let every process go on. Raises ``NotFound``, ``FailedPrecondition``."""
    request = tasks_pb2.ResumeTaskRequest(container_id=container_id)
    await _made_so(backend, container_id, task_types_pb2.RUNNING, lambda: backend.tasks.Resume(request))


async def _made_so(backend: Backend, container_id: str, status: int, ask: Callable[[], Awaitable[object]]) -> None:
    for left in reversed(range(TRIES)):
        try:
            with translated():
                await ask()
            return
        except HungUp:
            with translated():
                answer = await backend.tasks.Get(tasks_pb2.GetRequest(container_id=container_id))
            if answer.process.status == status:
                return
            if not left:
                raise
