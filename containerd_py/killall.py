"""``containerd-py shutdown --kill``: end every task and sandbox of every namespace, over the API like any client."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable

import grpc

from protos.containerd import (
    namespaces_pb2,
    namespaces_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    task_types_pb2,
    tasks_pb2,
    tasks_pb2_grpc,
)

SIGKILL = 9
CALL_SECONDS = 10.0


def kill_all(address: str, sandboxes: Iterable[tuple[str, str]]) -> None:
    """Kill and delete all tasks of the daemon on ``address``, then ``sandboxes`` (namespace, id).

    Failures are told and the others go on.
    """
    with grpc.insecure_channel(f"unix:{address}") as channel:
        namespaces = namespaces_pb2_grpc.NamespacesStub(channel)
        try:
            found = namespaces.List(namespaces_pb2.ListNamespacesRequest(), timeout=CALL_SECONDS).namespaces
        except grpc.RpcError:
            return
        for namespace in found:
            _kill_namespace(tasks_pb2_grpc.TasksStub(channel), (("containerd-namespace", namespace.name),))
        for name, id in sandboxes:
            try:
                sandbox_pb2_grpc.ControllerStub(channel).Shutdown(
                    sandbox_pb2.ControllerShutdownRequest(sandbox_id=id),
                    metadata=(("containerd-namespace", name),),
                    timeout=CALL_SECONDS,
                )
            except grpc.RpcError as error:
                sys.stderr.write(f"containerd-py: sandbox {id} not ended: {error}\n")


def _kill_namespace(tasks: tasks_pb2_grpc.TasksStub, metadata: tuple[tuple[str, str], ...]) -> None:
    listed = tasks.List(tasks_pb2.ListTasksRequest(), metadata=metadata, timeout=CALL_SECONDS).tasks
    for process in listed:
        try:
            if process.status == task_types_pb2.PAUSED:
                tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id=process.id), metadata=metadata)
            with contextlib.suppress(grpc.RpcError):  # it may have ended by itself
                request = tasks_pb2.KillRequest(container_id=process.id, signal=SIGKILL, all=True)
                tasks.Kill(request, metadata=metadata, timeout=CALL_SECONDS)
            tasks.Wait(tasks_pb2.WaitRequest(container_id=process.id), metadata=metadata, timeout=CALL_SECONDS)
            tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=process.id), metadata=metadata, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            sys.stderr.write(f"containerd-py: task {process.id} not ended: {error}\n")
