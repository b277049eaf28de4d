"""What becomes of a start whose answer was lost: with the supervisor, or with the engine itself."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engine.containers import launch
from engine.containers.config import ContainerConfig, HostConfig
from engine.containers.exits import LOST, Exits
from engine.containers.launch import Launcher, StartUnknown
from engine.containers.machine import Machine
from engine.containers.model import Container
from engine.containers.restoring import Restorer
from engine.store import Store
from oci import errors
from protos.containerd import task_types_pb2, tasks_pb2


def machine(**more: object) -> Machine:
    doc = Container(
        id="a" * 64,
        name="one",
        created_at=1,
        image_id="",
        image_manifest=None,
        chain_id="",
        snapshotter="overlayfs",
        platform="linux/amd64",
        path="true",
        args=(),
        config=ContainerConfig(),
        host=HostConfig(),
    )
    return Machine(Store(":memory:"), msgspec.structs.replace(doc, **more))


def ended(status: int) -> task_types_pb2.Process:
    process = task_types_pb2.Process(id="a" * 64, pid=7, status=task_types_pb2.STOPPED, exit_status=status)
    process.exited_at.FromNanoseconds(5_000_000_000)
    return process


def test_a_task_that_was_told_to_run_counts_as_a_run() -> None:
    one = machine(starting=True)
    Restorer._ended_unseen(one, ended(3))
    assert (one.doc.state.status, one.doc.state.pid, one.doc.starting) == ("running", 7, False)
    assert one.doc.state.started_at == 5_000_000_000
    assert one.doc.ever_started


def test_a_task_that_was_taken_back_is_no_run() -> None:
    one = machine()
    Restorer._ended_unseen(one, ended(137))
    assert one.doc.state.status == "created"
    assert not one.doc.ever_started


def test_taking_a_start_back_is_on_disk() -> None:
    one = machine(starting=True)
    one.save()
    one.not_starting()
    ((_, body),) = one._store.all("container")
    assert not msgspec.json.decode(body, type=Container).starting


class Supervisor:
    """Answers each call with what its script says next, the last one again and again; an error is raised."""

    def __init__(self, **script: list[Any]) -> None:
        self.script = script
        self.calls: list[str] = []
        self.tasks: Any = self

    async def _next(self, name: str) -> Any:
        self.calls.append(name)
        answers = self.script[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def Start(self, _request: Any, **_options: Any) -> Any:
        return await self._next("Start")

    async def Get(self, _request: Any, **_options: Any) -> Any:
        return await self._next("Get")

    async def Delete(self, _request: Any, **_options: Any) -> Any:
        return await self._next("Delete")


LOSS = errors.Unavailable("Socket closed")


def task(status: task_types_pb2.Status) -> tasks_pb2.GetResponse:
    return tasks_pb2.GetResponse(process=task_types_pb2.Process(id="a" * 64, pid=7, status=status))


def launcher(supervisor: Supervisor) -> Launcher:
    registry: Any = SimpleNamespace(backend=supervisor)
    return Launcher(registry)


RUNNING, CREATED, STOPPED = task_types_pb2.RUNNING, task_types_pb2.CREATED, task_types_pb2.STOPPED


@pytest.mark.parametrize("now", [RUNNING, STOPPED])
def test_a_start_that_happened_is_never_an_error(now: task_types_pb2.Status) -> None:
    """Not even when the supervisor dies again and again while it is asked."""
    supervisor = Supervisor(Start=[LOSS], Get=[LOSS, LOSS, task(now)])
    assert asyncio.run(launcher(supervisor)._start_task("a")) == 7
    assert supervisor.calls == ["Start", "Get", "Get", "Get"]


def test_a_start_that_did_not_happen_is_asked_for_again() -> None:
    supervisor = Supervisor(Start=[LOSS, LOSS, tasks_pb2.StartResponse(pid=8)], Get=[LOSS, task(CREATED)])
    assert asyncio.run(launcher(supervisor)._start_task("a")) == 8


def test_a_start_without_a_task_has_failed() -> None:
    supervisor = Supervisor(Start=[LOSS], Get=[errors.NotFound("no task")])
    with pytest.raises(errors.Unavailable) as caught:
        asyncio.run(launcher(supervisor)._start_task("a"))
    assert not isinstance(caught.value, StartUnknown)


def test_what_nobody_can_tell_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "KNOWN_SECONDS", 0.1)
    with pytest.raises(StartUnknown):
        asyncio.run(launcher(Supervisor(Start=[LOSS], Get=[LOSS]))._start_task("a"))


def test_an_earlier_engines_start_that_is_still_on_its_way_is_not_killed() -> None:
    """The task looked created; it is deleted as such or not at all."""
    late = Supervisor(Get=[task(CREATED), task(RUNNING)], Delete=[errors.FailedPrecondition("it runs")])
    found = asyncio.run(launcher(late).settled("a"))
    assert found is not None
    assert found.status == RUNNING
    never = Supervisor(Get=[task(CREATED)], Delete=[tasks_pb2.DeleteResponse()])
    assert asyncio.run(launcher(never).settled("a")) is None


def test_a_container_is_lost_only_when_there_certainly_is_no_task() -> None:
    """A list that leaves it out, and a supervisor that cannot tell, are no proof."""
    one = machine()
    one.set_state(status="running", pid=7)
    ends: list[int] = []

    class Watched(Exits):
        async def end(self, machine: Machine, code: int, at: int) -> None:
            ends.append(code)

        def afterwards(self, machine: Machine) -> None:
            pass

    def reconciled(*answers: Any) -> list[int]:
        registry: Any = SimpleNamespace(machines={one.id: one}, backend=Supervisor(Get=[*answers]))
        nobody: Any = None
        asyncio.run(Watched(registry, nobody, nobody).reconcile({}))
        return ends

    assert reconciled(LOSS, task(RUNNING)) == []
    assert reconciled(LOSS, task(task_types_pb2.UNKNOWN)) == []
    assert reconciled(LOSS, errors.NotFound("no task")) == [LOST]
