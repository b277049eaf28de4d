"""``containerd.services.tasks.v1``: each method is one call to the task's shim.

Rule: what a shim answers is passed on as it is, its errors too; what is decided here is only which shim to ask and what
to say when there is none any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from containerd_py.checkpoints import Checkpoints
from containerd_py.mounts.manager import MountManager
from containerd_py.mounts.tasks import TaskMounts
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.rpcs import TasksServicer
from containerd_py.tasks.bundle import ExitRecord, check_identifier
from containerd_py.tasks.manager import TaskManager
from containerd_py.tasks.recovery import timestamp
from containerd_py.tasks.task import Task
from oci import errors
from protos.containerd import runc_options_pb2, shim_v2_pb2, task_types_pb2, tasks_pb2, types_pb2

STATE_SECONDS = 10.0
"""How long a shim may take to tell its state before List and Metrics go on without it."""


@served(tasks_pb2.DESCRIPTOR.services_by_name["Tasks"])
class TasksService(TasksServicer):
    """Tasks over gRPC."""

    def __init__(self, manager: TaskManager, checkpoints: Checkpoints, mounts: MountManager | None = None) -> None:
        self._manager = manager
        self._checkpoints = checkpoints
        self._mounts = TaskMounts(mounts) if mounts is not None else None

    def _task(self, context: Context, id: str) -> Task:
        return self._manager.get(scope(context).namespace, id)

    async def Create(self, request: tasks_pb2.CreateTaskRequest, context: Context) -> tasks_pb2.CreateTaskResponse:
        where = scope(context)
        made = self._mounts is not None and await self._mounts.make(where, request)
        try:
            task = await self._manager.create(where.namespace, request, self._checkpoints.wanted(where, request))
        except errors.GantryError:
            if made and self._mounts is not None:
                await self._mounts.take_back(where, request.container_id)
            raise
        created = task_types_pb2.Process(
            container_id=task.id,
            id=task.id,
            pid=task.pid,
            status=task_types_pb2.CREATED,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            terminal=request.terminal,
        )
        task.learn(created, task.changes)
        return tasks_pb2.CreateTaskResponse(container_id=task.id, pid=task.pid)

    async def Start(self, request: tasks_pb2.StartRequest, context: Context) -> tasks_pb2.StartResponse:
        task = self._task(context, request.container_id)
        message = shim_v2_pb2.StartRequest(id=task.id, exec_id=request.exec_id)
        created, changes = task.known, task.changes + 1
        answer = await task.call("Start", message, shim_v2_pb2.StartResponse)
        if created is not None and not request.exec_id:
            created.status = task_types_pb2.RUNNING
            task.learn(created, changes)
        return tasks_pb2.StartResponse(pid=answer.pid)

    async def Delete(self, request: tasks_pb2.DeleteTaskRequest, context: Context) -> tasks_pb2.DeleteResponse:
        where = scope(context)
        record = await self._manager.delete(where.namespace, request.container_id)
        if self._mounts is not None:
            await self._mounts.take_back(where, request.container_id)
        return _deleted("", record)

    async def DeleteProcess(
        self, request: tasks_pb2.DeleteProcessRequest, context: Context
    ) -> tasks_pb2.DeleteResponse:
        task = self._task(context, request.container_id)
        _require_exec_id(request.exec_id)
        message = shim_v2_pb2.DeleteRequest(id=task.id, exec_id=request.exec_id)
        answer = await task.call("Delete", message, shim_v2_pb2.DeleteResponse)
        return tasks_pb2.DeleteResponse(
            id=request.exec_id, pid=answer.pid, exit_status=answer.exit_status, exited_at=answer.exited_at
        )

    async def Get(self, request: tasks_pb2.GetRequest, context: Context) -> tasks_pb2.GetResponse:
        task = self._task(context, request.container_id)
        return tasks_pb2.GetResponse(process=await _process(task, request.exec_id))

    async def List(self, request: tasks_pb2.ListTasksRequest, context: Context) -> tasks_pb2.ListTasksResponse:
        """Every task; the status of one whose shim cannot tell now is ``UNKNOWN``: it is there all the same."""
        tasks = self._manager.list(scope(context).namespace)
        found = await asyncio.gather(*map(_listed, tasks), return_exceptions=True)
        processes = [process for process in found if isinstance(process, task_types_pb2.Process)]
        return tasks_pb2.ListTasksResponse(tasks=processes)

    async def Kill(self, request: tasks_pb2.KillRequest, context: Context) -> Empty:
        task = self._task(context, request.container_id)
        if task.client is None and task.final is not None:
            raise errors.NotFound(f"process already finished: task {task.id}")
        message = shim_v2_pb2.KillRequest(id=task.id, exec_id=request.exec_id, signal=request.signal, all=request.all)
        return await task.call("Kill", message, Empty)

    async def Exec(self, request: tasks_pb2.ExecProcessRequest, context: Context) -> Empty:
        task = self._task(context, request.container_id)
        _require_exec_id(request.exec_id)
        message = shim_v2_pb2.ExecProcessRequest(
            id=task.id,
            exec_id=request.exec_id,
            terminal=request.terminal,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            spec=request.spec,
        )
        return await task.call("Exec", message, Empty)

    async def ResizePty(self, request: tasks_pb2.ResizePtyRequest, context: Context) -> Empty:
        task = self._task(context, request.container_id)
        message = shim_v2_pb2.ResizePtyRequest(
            id=task.id, exec_id=request.exec_id, width=request.width, height=request.height
        )
        return await task.call("ResizePty", message, Empty)

    async def CloseIO(self, request: tasks_pb2.CloseIORequest, context: Context) -> Empty:
        task = self._task(context, request.container_id)
        message = shim_v2_pb2.CloseIORequest(id=task.id, exec_id=request.exec_id, stdin=request.stdin)
        return await task.call("CloseIO", message, Empty)

    async def Pause(self, request: tasks_pb2.PauseTaskRequest, context: Context) -> Empty:
        task = self._task(context, request.container_id)
        return await task.call("Pause", shim_v2_pb2.PauseRequest(id=task.id), Empty)

    async def Resume(self, request: tasks_pb2.ResumeTaskRequest, context: Context) -> Empty:
        task = self._task(context, request.container_id)
        return await task.call("Resume", shim_v2_pb2.ResumeRequest(id=task.id), Empty)

    async def ListPids(self, request: tasks_pb2.ListPidsRequest, context: Context) -> tasks_pb2.ListPidsResponse:
        task = self._task(context, request.container_id)
        answer = await task.call("Pids", shim_v2_pb2.PidsRequest(id=task.id), shim_v2_pb2.PidsResponse)
        return tasks_pb2.ListPidsResponse(processes=answer.processes)

    async def Checkpoint(
        self, request: tasks_pb2.CheckpointTaskRequest, context: Context
    ) -> tasks_pb2.CheckpointTaskResponse:
        """Into the directory that the options name, else into the content store."""
        task = self._task(context, request.container_id)
        options = runc_options_pb2.CheckpointOptions.FromString(request.options.value)

        async def dump(directory: str) -> None:
            message = shim_v2_pb2.CheckpointTaskRequest(id=task.id, path=directory, options=request.options)
            await task.call("Checkpoint", message, Empty)

        if options.image_path:
            await dump(options.image_path)
            return tasks_pb2.CheckpointTaskResponse()
        stored = await self._checkpoints.store(scope(context), task.id, dump)
        return tasks_pb2.CheckpointTaskResponse(descriptors=stored)

    async def Update(self, request: tasks_pb2.UpdateTaskRequest, context: Context) -> Empty:
        task = self._task(context, request.container_id)
        message = shim_v2_pb2.UpdateTaskRequest(
            id=task.id, resources=request.resources, annotations=request.annotations
        )
        return await task.call("Update", message, Empty)

    async def Metrics(self, request: tasks_pb2.MetricsRequest, context: Context) -> tasks_pb2.MetricsResponse:
        """One metric per running task; ``filters`` select by ``id==<id>`` (none selects all)."""
        wanted = _wanted_ids(request.filters)
        tasks = [t for t in self._manager.list(scope(context).namespace) if wanted is None or t.id in wanted]
        found = await asyncio.gather(*map(_metric, tasks), return_exceptions=True)
        return tasks_pb2.MetricsResponse(metrics=[m for m in found if isinstance(m, types_pb2.Metric)])

    async def Wait(self, request: tasks_pb2.WaitRequest, context: Context) -> tasks_pb2.WaitResponse:
        task = self._task(context, request.container_id)
        message = shim_v2_pb2.WaitRequest(id=task.id, exec_id=request.exec_id)
        try:
            answer = await task.call("Wait", message, shim_v2_pb2.WaitResponse)
        except (errors.FailedPrecondition, errors.NotFound):
            record = _final(task, request.exec_id)
            if record is None:
                raise
            return tasks_pb2.WaitResponse(exit_status=record.exit_status, exited_at=timestamp(record.exited_at))
        return tasks_pb2.WaitResponse(exit_status=answer.exit_status, exited_at=answer.exited_at)


def _final(task: Task, exec_id: str) -> ExitRecord | None:
    """The record that speaks for a process when no shim is left to ask."""
    if task.client is not None or task.final is None:
        return None
    return task.bundle.exit_record(exec_id) if exec_id else task.final


async def _process(task: Task, exec_id: str) -> task_types_pb2.Process:
    request = shim_v2_pb2.StateRequest(id=task.id, exec_id=exec_id)
    changes = task.changes
    try:
        state = await task.call("State", request, shim_v2_pb2.StateResponse, seconds=STATE_SECONDS)
    except (errors.FailedPrecondition, errors.NotFound):
        record = _final(task, exec_id)
        if record is None:
            raise
        return task_types_pb2.Process(
            container_id=task.id,
            id=exec_id or task.id,
            pid=record.pid,
            status=task_types_pb2.STOPPED,
            exit_status=record.exit_status,
            exited_at=timestamp(record.exited_at),
        )
    process = task_types_pb2.Process(
        container_id=task.id,
        id=exec_id or task.id,
        pid=state.pid,
        status=state.status,
        stdin=state.stdin,
        stdout=state.stdout,
        stderr=state.stderr,
        terminal=state.terminal,
        exit_status=state.exit_status,
        exited_at=state.exited_at if state.HasField("exited_at") else None,
    )
    if not exec_id:
        task.learn(process, changes)
    return process


async def _listed(task: Task) -> task_types_pb2.Process | None:
    """The task as List tells it; None when it has been deleted meanwhile.

    A shim is not asked (and woken) for what is known: only an end comes without a call, and that is on record before
    anybody hears of it.
    """
    if task.known is not None and task.client is not None and task.bundle.exit_record() is None:
        return task.known
    try:
        return await _process(task, "")
    except errors.NotFound:
        return None
    except errors.GantryError:
        return task_types_pb2.Process(container_id=task.id, id=task.id, pid=task.pid, status=task_types_pb2.UNKNOWN)


async def _metric(task: Task) -> types_pb2.Metric:
    request = shim_v2_pb2.StatsRequest(id=task.id)
    answer = await task.call("Stats", request, shim_v2_pb2.StatsResponse, seconds=STATE_SECONDS)
    return types_pb2.Metric(timestamp=timestamp(time.time_ns()), id=task.id, data=answer.stats)


def _wanted_ids(filters: Iterable[str]) -> set[str] | None:
    wanted: set[str] = set()
    for expression in filters:
        field, separator, value = expression.partition("==")
        if field.strip() != "id" or not separator:
            raise errors.InvalidArgument(f"metrics filter {expression!r}", hint="metrics are selected by id==ID")
        wanted.add(value.strip().strip('"'))
    return wanted or None


def _require_exec_id(exec_id: str) -> None:
    if not exec_id:
        raise errors.InvalidArgument("exec id must not be empty")
    check_identifier("exec id", exec_id)


def _deleted(id: str, record: ExitRecord) -> tasks_pb2.DeleteResponse:
    exited_at: Timestamp | None = timestamp(record.exited_at) if record.exited_at else None
    return tasks_pb2.DeleteResponse(id=id, pid=record.pid, exit_status=record.exit_status, exited_at=exited_at)
