"""Sandboxes with our own shim: their whole life, and what outlives the death of each process that knows of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import cgroup_metrics
from protos.containerd import event_types_pb2, sandbox_pb2, task_types_pb2, tasks_pb2, types_pb2
from protos.sandbox_messages import NOT_READY, READY
from tests.integration.tasks.sandboxes import SandboxClient, assign
from tests.integration.tasks.supervisor import METADATA, OWN_RUNTIME, Supervisor, spec, supervisor
from tests.support.host import wait_for


@pytest.fixture(scope="module")
def daemon(busybox_tar: bytes) -> Iterator[Supervisor]:
    with supervisor(busybox_tar) as made:
        yield made


def client(daemon: Supervisor) -> SandboxClient:
    assert daemon.channel is not None
    return SandboxClient(daemon.channel)


def task_in(daemon: Supervisor, sandbox: str, id: str, *arguments: str) -> int:
    """Run ``arguments`` as a task of the sandbox."""
    assert daemon.channel is not None
    content = json.dumps(spec(arguments)).encode()
    assign(daemon.channel, id, OWN_RUNTIME, content, sandbox, metadata=METADATA)
    daemon.create_task(id)
    return daemon.start_task(id)


def bundle(daemon: Supervisor, id: str) -> Path:
    return daemon.state / "io.containerd.sandbox.controller.v1.shim" / "moby" / id


def holder(daemon: Supervisor, id: str) -> int:
    """Outer pid of the sandbox's shim."""
    inner = (bundle(daemon, id) / "shim.pid").read_text().strip()
    return next(pid for pid in daemon.host.processes() if daemon.host.inner_pid(pid) == inner)


def sandbox_events(stream: Any, count: int) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for envelope in stream:
        kind = getattr(event_types_pb2, envelope.event.type_url.rpartition(".")[2])
        found.append((envelope.topic, kind.FromString(envelope.event.value)))
        if len(found) == count:
            stream.cancel()
            break
    return found


def test_a_sandbox_with_tasks_from_creation_to_shutdown(daemon: Supervisor) -> None:
    sandboxes = client(daemon)
    events = daemon.subscribe("topic~=^/sandboxes/", 'topic=="/tasks/exit"')
    started = sandboxes.run("pod", OWN_RUNTIME)
    assert started.pid > 0 and started.created_at.seconds > 0
    status = sandboxes.status("pod")
    assert (status.sandbox_id, status.state, status.pid) == ("pod", READY, started.pid)
    platform = sandboxes.call("Platform", sandbox_pb2.ControllerPlatformRequest(sandbox_id="pod", sandboxer="shim"))
    assert platform.platform.os == "linux" and platform.platform.architecture
    for name in ("one", "two"):
        task_in(daemon, "pod", name, "sleep", "1000")
    assert sandboxes.status("pod").info["tasks"] == "one two"
    metrics = sandboxes.call("Metrics", sandbox_pb2.ControllerMetricsRequest(sandbox_id="pod")).metrics
    table = {cgroup_metrics.V1: cgroup_metrics.METRICS_V1, cgroup_metrics.V2: cgroup_metrics.METRICS_V2}
    assert metrics.id == "pod"
    assert table[metrics.data.type_url].decode(metrics.data.value)["pids"]["current"] == 2, "both tasks count"

    waiting = sandboxes.wait_later("pod")
    sandboxes.stop("pod")
    ended = waiting.result()
    assert ended.exit_status == 0 and ended.exited_at.seconds >= started.created_at.seconds
    for name in ("one", "two"):
        assert daemon.get(name).status == task_types_pb2.STOPPED
        assert daemon.delete(name) == 137
    status = sandboxes.status("pod")
    assert (status.state, status.exited_at) == (NOT_READY, ended.exited_at)
    sandboxes.stop("pod")  # again: nothing to do, no error, no event
    sandboxes.shutdown("pod")
    gone = sandboxes.status("pod")
    assert (gone.state, gone.pid) == ("", 0) and gone.exited_at.seconds > 0
    assert not bundle(daemon, "pod").exists()

    seen = sandbox_events(events, 5)
    topics = [topic for topic, _ in seen]
    assert topics == ["/sandboxes/create", "/sandboxes/start", "/tasks/exit", "/tasks/exit", "/sandboxes/exit"]
    assert seen[-1][1].exited_at == ended.exited_at


def test_what_cannot_be_is_refused_with_containerds_codes(daemon: Supervisor) -> None:
    sandboxes = client(daemon)

    def code(method: str, request: Any) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as refused:
            sandboxes.call(method, request)
        found: grpc.StatusCode = refused.value.code()
        return found

    described = sandboxes.describe("refused", OWN_RUNTIME)

    def create(**more: Any) -> sandbox_pb2.ControllerCreateRequest:
        return sandbox_pb2.ControllerCreateRequest(sandbox_id="refused", sandbox=described, **more)

    assert code("Create", create(sandboxer="podsandbox")) == grpc.StatusCode.NOT_FOUND
    assert code("Create", create(netns_path="/run/netns/none")) == grpc.StatusCode.NOT_FOUND
    assert code("Create", create(rootfs=[types_pb2.Mount(type="bind", source="/")])) == grpc.StatusCode.UNIMPLEMENTED
    assert code("Create", sandbox_pb2.ControllerCreateRequest(sandbox_id="unheard")) == grpc.StatusCode.NOT_FOUND
    bad = types_pb2.Sandbox(sandbox_id="../up")
    assert code("Create", sandbox_pb2.ControllerCreateRequest(sandbox_id="../up", sandbox=bad)) == (
        grpc.StatusCode.INVALID_ARGUMENT
    )
    for method in ("Start", "Platform", "Wait", "Shutdown", "Metrics"):
        request = getattr(sandbox_pb2, f"Controller{method}Request")(sandbox_id="unheard", sandboxer="shim")
        assert code(method, request) == grpc.StatusCode.NOT_FOUND, method
    assert code("Update", sandbox_pb2.ControllerUpdateRequest(sandbox_id="refused")) == grpc.StatusCode.INVALID_ARGUMENT
    assert list(bundle(daemon, "refused").parent.iterdir()) == [], "nothing stays of what was refused"

    sandboxes.call("Create", create(sandboxer="shim"))
    assert code("Create", create(sandboxer="shim")) == grpc.StatusCode.ALREADY_EXISTS
    assert sandboxes.status("refused").state == NOT_READY
    with pytest.raises(grpc.RpcError, match="does not run"):
        task_in(daemon, "refused", "early", "true")
    sandboxes.start("refused")
    start = sandbox_pb2.ControllerStartRequest(sandbox_id="refused")
    assert code("Start", start) == grpc.StatusCode.FAILED_PRECONDITION
    sandboxes.call("Update", sandbox_pb2.ControllerUpdateRequest(sandbox_id="refused", sandbox=described))
    sandboxes.stop("refused")
    assert code("Start", start) == grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError, match="does not run"):
        daemon.create_task("early")
    sandboxes.shutdown("refused")


def test_a_client_of_1_7_starts_what_it_has_only_described(daemon: Supervisor) -> None:
    sandboxes = client(daemon)
    sandboxes.describe("old", OWN_RUNTIME)
    assert sandboxes.call("Start", sandbox_pb2.ControllerStartRequest(sandbox_id="old")).pid
    assert sandboxes.status("old").state == READY
    sandboxes.shutdown("old")


def test_sandboxes_outlive_daemon_and_shim(daemon: Supervisor) -> None:
    sandboxes = client(daemon)
    for name in ("stays", "ends"):
        sandboxes.run(name, OWN_RUNTIME)
    task_in(daemon, "stays", "within", "sleep", "1000")
    first = holder(daemon, "stays")
    waiting = sandboxes.wait_later("stays")
    daemon.kill(first)
    wait_for(lambda: (bundle(daemon, "stays") / "shim.pid").read_text() != str(first), "another shim")
    assert sandboxes.status("stays").state == READY
    assert daemon.get("within").status == task_types_pb2.RUNNING
    assert not waiting.done(), "the sandbox has not ended"

    sandboxes.stop("ends")
    daemon.kill()
    daemon.kill(holder(daemon, "stays"), holder(daemon, "ends"))
    daemon.start()
    sandboxes = client(daemon)
    assert sandboxes.status("stays").state == READY
    assert sandboxes.status("ends").state == NOT_READY
    assert sandboxes.wait_later("ends").result().exit_status == 0
    assert sandboxes.status("stays").info["tasks"] == "within"

    daemon.kill()
    daemon.start()
    sandboxes = client(daemon)
    waiting = sandboxes.wait_later("stays")
    events = daemon.subscribe('topic=="/sandboxes/exit"')
    sandboxes.shutdown("stays")
    assert waiting.result().exit_status == 0
    assert sandbox_events(events, 1)[0][1].sandbox_id == "stays"
    assert daemon.delete("within") == 137
    sandboxes.shutdown("ends")


def test_a_daemon_that_died_in_a_create_leaves_nothing(daemon: Supervisor) -> None:
    """What is in the bundle directory decides: a shim without a sandbox, and a bundle without a shim."""
    sandboxes = client(daemon)
    sandboxes.run("whole", OWN_RUNTIME)
    daemon.kill()
    half = bundle(daemon, "half")
    half.mkdir()
    (half / "config.json").write_text("{}")
    (half / "rootfs").mkdir()
    daemon.start()
    sandboxes = client(daemon)
    assert not half.exists()
    assert sandboxes.status("half").state == ""
    assert sandboxes.status("whole").state == READY
    listed = tasks_pb2.ListTasksRequest()
    assert not daemon.tasks.List(listed, metadata=METADATA).tasks
    sandboxes.shutdown("whole")
