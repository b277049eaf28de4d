"""What a new engine makes of a start that the last one did not live to answer."""

from __future__ import annotations

import msgspec

from engine.containers.config import ContainerConfig, HostConfig
from engine.containers.machine import Machine
from engine.containers.model import Container
from engine.containers.restoring import Restorer
from engine.store import Store
from protos.containerd import task_types_pb2


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
