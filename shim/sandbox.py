"""The sandbox service of a shim: a group of tasks with one life (containerd.runtime.sandbox.v1).

Rule: the shim itself is what holds the group together; no process waits in it. What is known of the sandbox is in the
bundle (``sandbox.json``) before anybody is told, so that a shim that takes over knows it too. A sandbox that stops
takes all of its tasks along; it never starts again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Protocol

from oci import errors
from protos.cgroup_sums import add_up
from protos.sandbox_messages import NOT_READY, READY
from protos.shim_messages import timestamp
from protos.wire import Values
from shim import metrics
from shim.bundle import read_json, write_atomically
from shim.config import ShimConfig
from shim.container import Container
from shim.loop import report
from shim.server import Deferred

_RECORD = "sandbox.json"
_NOTHING: Values = {}
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
}
"""Go's names of machines."""


class Tasks(Protocol):
    """What the sandbox needs of the shim's Task service."""

    containers: dict[str, Container]
    config: ShimConfig
    on_shutdown: Callable[[], None]


class SandboxService:
    """The one sandbox of a shim."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._path = f"{tasks.config.bundle}/{_RECORD}"
        found = read_json(self._path)
        self._record: dict[str, Any] = found if isinstance(found, dict) else {}
        self._waiting: list[Deferred] = []
        self._stopping: Deferred | None = None
        self.handlers: dict[str, Callable[[Values], Values | Deferred]] = {
            "CreateSandbox": self._create,
            "StartSandbox": self._start,
            "Platform": self._platform,
            "StopSandbox": self._stop,
            "WaitSandbox": self._wait,
            "SandboxStatus": self._status,
            "PingSandbox": self._ping,
            "ShutdownSandbox": self._shutdown,
            "SandboxMetrics": self._metrics,
        }

    @property
    def alive(self) -> bool:
        """Whether there is a sandbox that has not stopped: the shim stays for it, with or without tasks."""
        return bool(self._record) and not self._record["exited_at"]

    def _create(self, request: Values) -> Values:
        name = request["sandbox_id"]
        if self._record:
            raise errors.AlreadyExists(f"sandbox {self._record['sandbox_id']}: already exists in this shim")
        if request["rootfs"]:
            raise errors.Unimplemented(
                f"sandbox {name}: a root file system was given, and no process of the sandbox's own would see it",
                hint="mount it for the tasks",
            )
        netns = request["netns_path"]
        if netns and not os.path.exists(netns):
            raise errors.NotFound(f"sandbox {name}: network namespace {netns} does not exist")
        self._write(
            sandbox_id=name,
            netns_path=netns,
            annotations=request["annotations"],
            created_at=time.time_ns(),
            started_at=0,
            exited_at=0,
        )
        return _NOTHING

    def _write(self, **changes: Any) -> None:
        self._record = {**self._record, **changes}
        write_atomically(self._path, json.dumps(self._record).encode())

    def _known(self, request: Values) -> dict[str, Any]:
        """The record. Raises ``NotFound`` for another sandbox than this shim's."""
        if not self._record or self._record["sandbox_id"] != request["sandbox_id"]:
            raise errors.NotFound(f"sandbox {request['sandbox_id']} does not exist")
        return self._record

    def _start(self, request: Values) -> Values:
        record = self._known(request)
        if record["exited_at"]:
            raise errors.FailedPrecondition(f"sandbox {request['sandbox_id']} has stopped", hint="make another")
        if record["started_at"]:
            raise errors.FailedPrecondition(f"sandbox {request['sandbox_id']} is already started")
        self._write(started_at=time.time_ns())
        return {"pid": os.getpid(), "created_at": timestamp(record["created_at"])}

    def _platform(self, request: Values) -> Values:
        self._known(request)
        machine = os.uname().machine
        architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
        return {"platform": {"os": "linux", "architecture": architecture, "variant": variant}}

    def _ping(self, request: Values) -> Values:
        self._known(request)
        return _NOTHING

    def _status(self, request: Values) -> Values:
        record = self._known(request)
        ready = record["started_at"] and not record["exited_at"]
        return {
            "sandbox_id": record["sandbox_id"],
            "pid": 0 if record["exited_at"] else os.getpid(),
            "state": READY if ready else NOT_READY,
            "info": self._info(record) if request["verbose"] else {},
            "created_at": timestamp(record["created_at"]),
            "exited_at": timestamp(record["exited_at"]) if record["exited_at"] else None,
        }

    def _info(self, record: dict[str, Any]) -> dict[str, str]:
        annotations = {f"annotation.{name}": value for name, value in record["annotations"].items()}
        return {"netns": record["netns_path"], "tasks": " ".join(self._tasks.containers), **annotations}

    def _wait(self, request: Values) -> Values | Deferred:
        record = self._known(request)
        if record["exited_at"]:
            return _exit_values(record)
        deferred = Deferred()
        self._waiting.append(deferred)
        return deferred

    def _stop(self, request: Values) -> Values | Deferred:
        """Kill all tasks and answer when the last has ended: nothing can be done after SIGKILL, so no time is too long.

        A second call waits for the end of the first.
        """
        record = self._known(request)
        if record["exited_at"]:
            return _NOTHING
        if self._stopping is None:
            self._stopping = Deferred()
            self._end_tasks(self._stopped)
        deferred = Deferred()
        self._stopping.then(deferred.resolve)
        return deferred

    def _end_tasks(self, then: Callable[[], None]) -> None:
        running = [container for container in self._tasks.containers.values() if container.init.running]
        left = len(running)
        if not left:
            then()

        def ended(_exit: Values) -> None:
            nonlocal left
            left -= 1
            if not left:
                then()

        for container in running:
            container.init.wait().then(ended)
            try:
                container.kill(container.init, signal.SIGKILL, True)
            except errors.GantryError as error:
                report(f"cannot kill the processes of {container.container_id} by its runtime: {error}")
                with contextlib.suppress(errors.NotFound):
                    container.init.signal(signal.SIGKILL)

    def _stopped(self) -> None:
        self._write(exited_at=time.time_ns())
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.resolve(_exit_values(self._record))
        assert self._stopping is not None
        self._stopping.resolve(_NOTHING)

    def _shutdown(self, request: Values) -> Values | Deferred:
        """Stop, remove what is left of the tasks, and end the shim."""
        self._known(request)
        answer = Deferred()
        stopped = self._stop(request)
        if isinstance(stopped, Deferred):
            stopped.then(lambda _: self._leave(answer))
        else:
            self._leave(answer)
        return answer

    def _leave(self, answer: Deferred) -> None:
        for name, container in list(self._tasks.containers.items()):
            try:
                container.delete()
            except (errors.GantryError, OSError) as error:
                report(f"cannot remove task {name} of the sandbox: {error}")
            else:
                del self._tasks.containers[name]
        answer.resolve(_NOTHING)
        self._tasks.on_shutdown()

    def _metrics(self, request: Values) -> Values:
        record = self._known(request)
        stats: list[Values] = []
        for container in list(self._tasks.containers.values()):
            with contextlib.suppress(errors.GantryError, OSError):  # one that ends now has none any more
                stats.append(metrics.encode(container.runtime.stats(container.container_id)))
        now = timestamp(time.time_ns())
        return {"metrics": {"timestamp": now, "id": record["sandbox_id"], "data": add_up(stats)}}


def _exit_values(record: dict[str, Any]) -> Values:
    return {"exit_status": 0, "exited_at": timestamp(record["exited_at"])}
