"""The same lives over containerd's own API, for a supervisor without an engine: ours, or Debian's containerd.

Rule: as in ``lives``; what an engine would do for its client (create the task again where it never started, ask what
became of a call that was not answered) is done here, no more.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd import (
    containers_pb2,
    containers_pb2_grpc,
    namespaces_pb2,
    namespaces_pb2_grpc,
    task_types_pb2,
    tasks_pb2,
    tasks_pb2_grpc,
    types_pb2,
)
from tests.chaos.api import Api, Broken
from tests.chaos.lives import KINDS, PATIENCE, Life, Plan, Wrong, burst, counted, counting, killed, shell
from tests.integration.tasks.supervisor import SPEC_TYPE, spec

NAMESPACE = "moby"
METADATA = (("containerd-namespace", NAMESPACE),)
CALL_SECONDS = 30.0
STAND_INS = {"terminal": "count", "exec": "killed", "attached": "stopped", "restarted": "burst"}
"""Kinds of lives that need an engine, and what is lived in their place."""

OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500))
_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
RUNNING, PAUSED, STOPPED = task_types_pb2.RUNNING, task_types_pb2.PAUSED, task_types_pb2.STOPPED


class Reply(NamedTuple):
    """What a call came to: the answer, or a status code with its message."""

    value: Any
    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""


class Supervised:
    """Where lives are led: the supervisor's socket, a rootfs, a directory for output, a parent for cgroups."""

    def __init__(self, address: str, rootfs: Path, output: Path, cgroups: str, runtime: str) -> None:
        self.rootfs, self.output, self.cgroups, self.runtime = rootfs, output, cgroups, runtime
        self._channel = grpc.insecure_channel(f"unix:{address}", options=OPTIONS)
        self.tasks = tasks_pb2_grpc.TasksStub(self._channel)
        self.containers = containers_pb2_grpc.ContainersStub(self._channel)
        self.namespaces = namespaces_pb2_grpc.NamespacesStub(self._channel)

    def call(self, method: Callable[..., Any], request: Any, seconds: float = CALL_SECONDS) -> Reply:
        """One call. Raises ``Broken`` when nobody lived to answer."""
        try:
            return Reply(method(request, metadata=METADATA, timeout=seconds))
        except grpc.RpcError as error:
            code, message = error.code(), str(error.details())
            if code in _BROKEN:
                raise Broken(f"{type(request).__name__}: {code.name} {message}") from error
            return Reply(None, code, message)

    def answers(self) -> bool:
        """Whether somebody serves."""
        try:
            return self.call(self.namespaces.List, namespaces_pb2.ListNamespacesRequest(), 5).value is not None
        except Broken:
            return False


class TaskLife(Life):
    """One container and its task from create to remove."""

    def __init__(self, where: Supervised, plan: Plan, over: threading.Event) -> None:
        super().__init__(Api(""), plan, over)
        self._where = where
        self.id = self.name
        self._asked = False

    def run(self) -> None:
        """Live. Raises ``Wrong``."""
        kind = STAND_INS.get(self.plan.kind, self.plan.kind)
        self.note(f"{self.plan} as {kind}")
        config, _ = KINDS[kind]
        # The runc shim writes both streams to the file of the first: one stream is fair.
        is_count = kind in ("count", "paused")
        self.create(shell(counting(self.plan, errors=False)) if is_count else config(self.plan))
        self.start()
        LIVES[kind](self)
        self.remove()

    def ask(self, method: Callable[..., Any], request: Any, seconds: float = CALL_SECONDS) -> Reply:
        """A call that is noted."""
        reply = self._where.call(method, request, seconds)
        if reply.code is not grpc.StatusCode.OK:
            self.refusals += 1
            self.note(f"{type(request).__name__}: {reply.code.name} {reply.message}")
        return reply

    def create(self, config: dict[str, Any]) -> None:
        described = spec(config["Cmd"])
        described["linux"]["cgroupsPath"] = f"{self._where.cgroups}/{self.id}"
        any_spec = AnyMessage(type_url=SPEC_TYPE, value=json.dumps(described).encode())
        container = containers_pb2.Container(id=self.id, spec=any_spec)
        container.runtime.name = self._where.runtime

        def step() -> bool:
            reply = self.ask(self._where.containers.Create, containers_pb2.CreateContainerRequest(container=container))
            return reply.code in (grpc.StatusCode.OK, grpc.StatusCode.ALREADY_EXISTS)

        self.until("create", step)

    def _process(self) -> task_types_pb2.Process | None:
        reply = self._where.call(self._where.tasks.Get, tasks_pb2.GetRequest(container_id=self.id))
        if reply.code is grpc.StatusCode.NOT_FOUND:
            return None
        if reply.value is None:
            raise Broken(f"Get: {reply.code.name} {reply.message}")
        process: task_types_pb2.Process = reply.value.process
        return process

    def process(self) -> task_types_pb2.Process:
        """The task, which there must be."""

        def step() -> Any:
            found = self._process()
            if found is None:
                raise Wrong("container lost", "its task is gone")
            return found

        found: task_types_pb2.Process = self.until("get", step)
        return found

    def start(self) -> None:
        def step() -> bool:
            found = self._process()
            if found is None and self._asked:
                raise Wrong("container lost", "its task is gone after a start")
            if found is not None and found.status in (RUNNING, PAUSED, STOPPED):
                return True
            if found is None:
                self._create_task()
            self._asked = True
            request = tasks_pb2.StartRequest(container_id=self.id)
            return self.ask(self._where.tasks.Start, request).code is grpc.StatusCode.OK

        self.until("start", step)

    def _create_task(self) -> None:
        request = tasks_pb2.CreateTaskRequest(
            container_id=self.id,
            stdout=f"file://{self._path('out')}",
            stderr=f"file://{self._path('err')}",
            rootfs=[types_pb2.Mount(type="bind", source=str(self._where.rootfs), options=["rbind", "ro"])],
        )
        reply = self.ask(self._where.tasks.Create, request)
        if reply.code not in (grpc.StatusCode.OK, grpc.StatusCode.ALREADY_EXISTS):
            raise Broken(f"Create: {reply.message}")

    def _path(self, stream: str) -> Path:
        return self._where.output / f"{self.id}.{stream}"

    def exit_code(self) -> int:
        def step() -> Any:
            request = tasks_pb2.WaitRequest(container_id=self.id)
            reply = self.ask(self._where.tasks.Wait, request, PATIENCE)
            if reply.code is grpc.StatusCode.NOT_FOUND:
                raise Wrong("container lost", f"wait: {reply.message}")
            return None if reply.value is None else (reply.value.exit_status,)

        (code,) = self.until("wait", step)
        self.note(f"ended with {code}")
        return int(code)

    def expect_exit(self, wanted: int) -> None:
        code, process = self.exit_code(), self.process()
        if code != wanted or process.exit_status != wanted:
            raise Wrong("exit code", f"wait says {code}, get {process.exit_status}, it was {wanted}")

    def logs(self) -> tuple[bytes, bytes]:
        found = [path.read_bytes() if path.exists() else b"" for path in (self._path("out"), self._path("err"))]
        return found[0], found[1]

    def signal(self, name: str) -> None:
        number = {"KILL": 9, "TERM": 15}[name]

        def step() -> bool:
            reply = self.ask(self._where.tasks.Kill, tasks_pb2.KillRequest(container_id=self.id, signal=number))
            return reply.code is grpc.StatusCode.OK or self.process().status == STOPPED

        self.until(f"kill {name}", step)

    def pause(self, *, resume: bool) -> None:
        """Freeze it, or let it go on."""
        request: Any = tasks_pb2.ResumeTaskRequest if resume else tasks_pb2.PauseTaskRequest
        method = self._where.tasks.Resume if resume else self._where.tasks.Pause

        def step() -> bool:
            self.ask(method, request(container_id=self.id))
            return self.process().status in (RUNNING if resume else PAUSED, STOPPED)

        self.until("resume" if resume else "pause", step)

    def remove(self) -> None:
        def step() -> bool:
            if self._process() is not None:
                self.ask(self._where.tasks.Kill, tasks_pb2.KillRequest(container_id=self.id, signal=9, all=True))
                self.ask(self._where.tasks.Delete, tasks_pb2.DeleteTaskRequest(container_id=self.id))
                return False
            reply = self.ask(self._where.containers.Delete, containers_pb2.DeleteContainerRequest(id=self.id))
            return reply.code in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)

        self.until("remove", step)


def _count(life: TaskLife) -> None:
    life.expect_exit(life.plan.code)
    life.expect_logs(counted(life.plan, "out"))


def _stopped(life: TaskLife) -> None:
    life.await_log(b"up\n")
    life.signal("TERM")
    life.expect_exit(life.plan.code)
    life.expect_logs(b"up\nbye\n")


def _paused(life: TaskLife) -> None:
    life.pause(resume=False)
    life.pause(resume=True)
    _count(life)


LIVES: dict[str, Callable[[TaskLife], None]] = {
    "count": _count,
    "burst": burst,
    "killed": killed,
    "stopped": _stopped,
    "paused": _paused,
}
"""What is done and must be seen, by kind."""
