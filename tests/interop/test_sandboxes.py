"""Sandboxes across the borders: containerd's client and shim with our daemon, our shim with containerd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos.containerd import sandbox_pb2, task_types_pb2, tasks_pb2, tasks_pb2_grpc, types_pb2
from protos.sandbox_messages import NOT_READY, READY
from tests.integration.tasks.sandboxes import SandboxClient, assign
from tests.integration.tasks.supervisor import CALL_SECONDS, METADATA, OWN_RUNTIME, Supervisor, spec, supervisor
from tests.interop.test_containerd_runs_our_shim import ADDRESS, Containerd
from tests.support.host import PrivateHost, wait_for
from tests.support.newer import MISSING, newer_program

CTR = newer_program("usr/bin/ctr")
CONTAINERD = newer_program("usr/bin/containerd")
SHIM = newer_program("usr/bin/containerd-shim-runc-v2")
OLD_SHIM = shutil.which("containerd-shim-runc-v2")

needs_newer = pytest.mark.skipif(CTR is None or SHIM is None or CONTAINERD is None, reason=MISSING)


@pytest.fixture
def daemon(busybox_tar: bytes) -> Iterator[Supervisor]:
    with supervisor(busybox_tar) as made:
        made.host.check("mkdir", "-p", "/run/containerd")
        made.host.check("mount", "-t", "tmpfs", "tmpfs", "/run/containerd")
        yield made
        made.host.check("umount", "/run/containerd")


def runc_spec(*arguments: str) -> bytes:
    return json.dumps({**spec(arguments), "ociVersion": "1.0.2"}).encode()


@needs_newer
def test_ctr_runs_and_removes_a_sandbox_with_a_task(daemon: Supervisor, tmp_path: Path) -> None:
    def ctr(*arguments: str) -> str:
        assert CTR is not None
        return daemon.host.check(CTR, "--address", str(daemon.address), "--namespace", "moby", *arguments)

    config = tmp_path / "pod.json"
    config.write_text('{"ociVersion":"1.1.0"}')
    assert ctr("sandboxes", "run", "--runtime", OWN_RUNTIME, str(config), "pod") == "pod\n"
    assert "pod" in ctr("sandboxes", "list")
    where = ("--sandbox", "pod", "--runtime", OWN_RUNTIME, "--env", "PATH=/bin", "--rootfs", str(daemon.lower))
    ctr("run", "--detach", *where, "within", "sleep", "1000")
    assert "RUNNING" in ctr("tasks", "list")
    ctr("sandboxes", "remove", "pod")
    assert "pod" not in ctr("sandboxes", "list")
    assert "STOPPED" in ctr("tasks", "list"), "it ended with its sandbox"
    ctr("tasks", "delete", "within")
    ctr("containers", "delete", "within")


@needs_newer
def test_tasks_share_the_shim_of_containerds_sandbox(daemon: Supervisor) -> None:
    assert SHIM is not None and daemon.channel is not None
    sandboxes = SandboxClient(daemon.channel)
    started = sandboxes.run("pod", SHIM)
    assert started.address.startswith("ttrpc+unix:///run/containerd/s/")
    for name in ("one", "two"):
        assign(daemon.channel, name, SHIM, runc_spec("sleep", "1000"), "pod", metadata=METADATA)
        daemon.create_task(name)
        daemon.start_task(name)
    assert len(daemon.host.pids_of(SHIM)) == 1
    daemon.kill()
    daemon.start()
    assert daemon.channel is not None
    sandboxes = SandboxClient(daemon.channel)
    status = sandboxes.status("pod")
    assert (status.state, status.info["tasks"]) == (READY, "one two")
    metrics = sandboxes.call("Metrics", sandbox_pb2.ControllerMetricsRequest(sandbox_id="pod")).metrics
    assert metrics.data.value, "this shim has none of its own: those of the tasks"
    daemon.signal("one", 9)
    assert daemon.wait("one") == 137
    assert daemon.delete("one") == 137
    assert daemon.get("two").status == task_types_pb2.RUNNING, "the shim stays"
    waiting = sandboxes.wait_later("pod")
    sandboxes.stop("pod")
    assert waiting.result().exit_status == 0
    assert daemon.delete("two") == 137
    assert sandboxes.status("pod").state == NOT_READY
    sandboxes.shutdown("pod")
    wait_for(lambda: not daemon.host.pids_of(SHIM), "the shim's end")


@pytest.mark.skipif(OLD_SHIM is None, reason="needs containerd's own shim (apt: containerd)")
def test_a_shim_without_sandboxes_is_refused_and_ended(daemon: Supervisor) -> None:
    assert daemon.channel is not None
    sandboxes = SandboxClient(daemon.channel)
    with pytest.raises(grpc.RpcError) as refused:
        sandboxes.run("pod", "io.containerd.runc.v2")
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert OWN_RUNTIME in str(refused.value.details()), "says which has it"
    wait_for(lambda: not daemon.host.pids_of("containerd-shim-runc-v2"), "the shim's end")


@needs_newer
def test_containerd_keeps_its_sandboxes_in_our_shim() -> None:
    metadata = (("containerd-namespace", "default"),)
    with PrivateHost() as host:
        assert CONTAINERD is not None
        containerd = Containerd(host, CONTAINERD)
        containerd.start()
        inside = host.pids_of("containerd", "-c")[0]
        with grpc.insecure_channel(f"unix:/proc/{inside}/root{ADDRESS}") as channel:
            tasks = tasks_pb2_grpc.TasksStub(channel)

            def call(method: str, **request: str | int) -> object:
                message = getattr(tasks_pb2, f"{method}Request")(**request)
                return getattr(tasks, method.removesuffix("Task"))(message, metadata=metadata, timeout=CALL_SECONDS)

            sandboxes = SandboxClient(channel, metadata)
            sandbox = sandboxes.describe("pod", OWN_RUNTIME)
            for method, request in (
                ("Create", sandbox_pb2.ControllerCreateRequest(sandbox_id="pod", sandbox=sandbox)),
                ("Start", sandbox_pb2.ControllerStartRequest(sandbox_id="pod")),
            ):
                # 1.7 does what it is asked to, and then cannot publish an event whose topic it misspells.
                with pytest.raises(grpc.RpcError, match="envelope topic"):
                    sandboxes.call(method, request)
            (shim,) = containerd.shims()
            status = sandboxes.status("pod")
            assert (status.state, str(status.pid)) == (READY, host.inner_pid(shim))
            for name in ("one", "two"):
                assign(channel, name, OWN_RUNTIME, runc_spec("sleep", "1000"), "pod", metadata=metadata)
                rootfs = types_pb2.Mount(type="bind", source=str(containerd.rootfs), options=["rbind", "rw"])
                made = tasks_pb2.CreateTaskRequest(container_id=name, rootfs=[rootfs])
                tasks.Create(made, metadata=metadata, timeout=CALL_SECONDS)
                call("Start", container_id=name)
            assert containerd.shims() == [shim], "both tasks are in the sandbox's shim"
            assert sandboxes.status("pod").info["tasks"] == "one two"
            call("Kill", container_id="one", signal=9)
            wait_for(lambda: containerd.status("one") == "STOPPED", "the end of one")
            call("DeleteTask", container_id="one")
            assert containerd.status("two") == "RUNNING"
            sandboxes.stop("pod")
            wait_for(lambda: containerd.status("two") == "STOPPED", "the end of two")
            assert sandboxes.status("pod").state == NOT_READY
            call("DeleteTask", container_id="two")
            sandboxes.shutdown("pod")
            wait_for(lambda: not containerd.shims(), "the shim's end")
        containerd.kill()
        assert host.processes() == {}
