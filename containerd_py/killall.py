"""``containerd-py shutdown --kill``: end every task and sandbox of every namespace, over the API like any client."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable

from containerd_py.asking import Daemon
from oci.errors import GantryError
from protos.containerd import namespaces_pb2, sandbox_pb2, task_types_pb2, tasks_pb2

SIGKILL = 9
CALL_SECONDS = 10.0

NAMESPACES = namespaces_pb2.DESCRIPTOR.services_by_name["Namespaces"]
TASKS = tasks_pb2.DESCRIPTOR.services_by_name["Tasks"]
CONTROLLER = sandbox_pb2.DESCRIPTOR.services_by_name["Controller"]


def kill_all(address: str, sandboxes: Iterable[tuple[str, str]]) -> None:
    """Kill and delete all tasks of the daemon on ``address``, then ``sandboxes`` (namespace, id).

    Failures are told and the others go on.
    """
    try:
        daemon = Daemon(address, CALL_SECONDS)
    except GantryError:
        return  # it has ended already
    with daemon:
        try:
            found = daemon.call(NAMESPACES, "List", namespaces_pb2.ListNamespacesRequest()).namespaces
        except GantryError:
            return
        for namespace in found:
            _kill_namespace(daemon, namespace.name)
        for name, id in sandboxes:
            try:
                daemon.call(CONTROLLER, "Shutdown", sandbox_pb2.ControllerShutdownRequest(sandbox_id=id), name)
            except GantryError as error:
                sys.stderr.write(f"containerd-py: sandbox {id} not ended: {error}\n")


def _kill_namespace(daemon: Daemon, namespace: str) -> None:
    for process in daemon.call(TASKS, "List", tasks_pb2.ListTasksRequest(), namespace).tasks:
        try:
            if process.status == task_types_pb2.PAUSED:
                daemon.call(TASKS, "Resume", tasks_pb2.ResumeTaskRequest(container_id=process.id), namespace)
            with contextlib.suppress(GantryError):  # it may have ended by itself
                request = tasks_pb2.KillRequest(container_id=process.id, signal=SIGKILL, all=True)
                daemon.call(TASKS, "Kill", request, namespace)
            daemon.call(TASKS, "Wait", tasks_pb2.WaitRequest(container_id=process.id), namespace)
            daemon.call(TASKS, "Delete", tasks_pb2.DeleteTaskRequest(container_id=process.id), namespace)
        except GantryError as error:
            sys.stderr.write(f"containerd-py: task {process.id} not ended: {error}\n")
