"""Tasks end to end: daemon, zygote, shim and runtime as they are, in a private host."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator

import grpc
import pytest

from protos.containerd import event_types_pb2, task_types_pb2, tasks_pb2
from tests.integration.tasks.supervisor import (
    CALL_SECONDS,
    METADATA,
    NAMESPACE,
    Supervisor,
    alive,
    supervisor,
)
from tests.support.host import wait_for

COUNT = "i=0; while [ $i -lt {0} ]; do i=$((i+1)); echo $i; sleep 0.05; done; exit {1}"


@pytest.fixture(scope="module")
def shared(busybox_tar: bytes) -> Iterator[Supervisor]:
    """A daemon for tests that leave it as it was; what it leaves behind in the end is asserted to be nothing."""
    with supervisor(busybox_tar) as daemon:
        yield daemon


@pytest.fixture
def daemon(busybox_tar: bytes) -> Iterator[Supervisor]:
    """A daemon of one's own, to be killed."""
    with supervisor(busybox_tar) as daemon:
        yield daemon


def code(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    status: grpc.StatusCode = error.value.code()
    return status


def counted(daemon: Supervisor, id: str) -> list[int]:
    return [int(line) for line in daemon.out(id).read_text().split()]


def test_run_to_the_end(shared: Supervisor) -> None:
    events = shared.subscribe(f"namespace=={NAMESPACE},topic~=^/tasks/")
    pid = shared.create("run", "sh", "-c", "echo hello; exit 7")
    assert pid > 0
    assert shared.get("run").status == task_types_pb2.CREATED
    waiting = shared.wait_later("run")
    assert shared.start_task("run") == pid
    assert waiting.result().exit_status == 7
    assert shared.wait("run") == 7
    stopped = shared.get("run")
    assert (stopped.status, stopped.exit_status, stopped.id) == (task_types_pb2.STOPPED, 7, "run")
    assert shared.out("run").read_text() == "hello\n"
    assert shared.delete("run") == 7
    topics = [next(events).topic for _ in range(4)]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    events.cancel()
    assert not shared.bundle("run").exists()
    for call in (shared.get, shared.wait, shared.delete_task):
        with pytest.raises(grpc.RpcError) as error:
            call("run")
        assert code(error) is grpc.StatusCode.NOT_FOUND


def test_program_that_is_not_there(shared: Supervisor) -> None:
    with pytest.raises(grpc.RpcError) as error:
        shared.create("absent", "no-such-program")
        shared.start_task("absent")
    assert 'exec: "no-such-program": executable file not found in $PATH' in str(error.value.details())
    for task in shared.tasks.List(tasks_pb2.ListTasksRequest(), metadata=METADATA).tasks:
        assert shared.delete_task(task.id) >= 0
    assert not shared.bundle("absent").exists()


def test_signal_pause_pids_and_stats(shared: Supervisor) -> None:
    shared.create("live", "sleep", "100")
    pid = shared.start_task("live")
    request = tasks_pb2.ListPidsRequest(container_id="live")
    pids = shared.tasks.ListPids(request, metadata=METADATA).processes
    assert [process.pid for process in pids] == [pid]
    shared.tasks.Pause(tasks_pb2.PauseTaskRequest(container_id="live"), metadata=METADATA)
    assert shared.get("live").status == task_types_pb2.PAUSED
    shared.tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id="live"), metadata=METADATA)
    assert shared.get("live").status == task_types_pb2.RUNNING
    metrics = shared.tasks.Metrics(tasks_pb2.MetricsRequest(filters=["id==live"]), metadata=METADATA).metrics
    assert [metric.id for metric in metrics] == ["live"]
    with pytest.raises(grpc.RpcError) as error:
        shared.delete_task("live")
    assert code(error) is grpc.StatusCode.FAILED_PRECONDITION
    shared.signal("live", 9)
    assert shared.wait("live") == 137
    assert shared.delete("live") == 137


def test_delete_of_a_task_that_never_started(shared: Supervisor) -> None:
    shared.create("unstarted", "true")
    shared.signal("unstarted", 9)
    shared.wait("unstarted")
    shared.delete("unstarted")
    assert not shared.bundle("unstarted").exists()


def test_second_create_is_refused(shared: Supervisor) -> None:
    shared.create("twice", "sleep", "100")
    with pytest.raises(grpc.RpcError) as error:
        shared.create_task("twice")
    assert code(error) is grpc.StatusCode.ALREADY_EXISTS
    shared.signal("twice", 9)
    shared.wait("twice")
    shared.delete("twice")


def test_killed_shim(shared: Supervisor) -> None:
    shared.create("orphan", "sh", "-c", COUNT.format(30, 5))
    pid = shared.start_task("orphan")
    waiting = shared.wait_later("orphan")
    wait_for(lambda: len(counted(shared, "orphan")) > 2, "some output")
    first = shared.shim_pid("orphan")
    shared.kill(first)
    assert shared.get("orphan").status == task_types_pb2.RUNNING
    assert shared.get("orphan").pid == pid
    assert waiting.result().exit_status == 5
    assert counted(shared, "orphan") == list(range(1, 31))
    assert shared.delete("orphan") == 5


def test_killed_daemon(daemon: Supervisor) -> None:
    daemon.create("through", "sh", "-c", COUNT.format(100, 3))
    daemon.create("meanwhile", "sh", "-c", "sleep 0.3; exit 7")
    for id in ("through", "meanwhile"):
        daemon.start_task(id)
    init = daemon.init_pid("through")
    daemon.kill()
    time.sleep(0.5)
    assert alive(init)
    daemon.start()
    assert daemon.get("through").status == task_types_pb2.RUNNING
    assert daemon.wait("meanwhile") == 7, "the exit code of a container that ended while the daemon was dead"
    assert daemon.wait("through") == 3
    assert counted(daemon, "through") == list(range(1, 101))
    assert daemon.delete("through") == 3
    assert daemon.delete("meanwhile") == 7


def test_everything_killed(daemon: Supervisor) -> None:
    """Shim, daemon, zygote: the container goes on, and what ended meanwhile has its exit code."""
    daemon.create("through", "sh", "-c", COUNT.format(60, 4))
    daemon.create("meanwhile", "sh", "-c", "sleep 0.5; exit 9")
    for id in ("through", "meanwhile"):
        daemon.start_task(id)
    init = daemon.init_pid("through")
    shims = [daemon.shim_pid(id) for id in ("through", "meanwhile")]
    daemon.kill()
    daemon.kill(*shims)
    time.sleep(0.8)
    assert alive(init)
    daemon.kill(*daemon.named("gantry-zygote"))
    daemon.start()
    assert daemon.wait("meanwhile") == 9
    assert daemon.wait("through") == 4
    assert counted(daemon, "through") == list(range(1, 61))
    assert daemon.delete("through") == 4
    assert daemon.delete("meanwhile") == 9


def test_helpers_killed(daemon: Supervisor) -> None:
    """Without zygote and keeper running containers do not notice, and new ones start."""
    daemon.create("old", "sh", "-c", "sleep 1; exit 6")
    daemon.start_task("old")
    daemon.kill(*daemon.named("gantry-zygote"), *daemon.named("gantry-keeper"))
    daemon.create("new", "sh", "-c", "exit 2")
    daemon.start_task("new")
    assert daemon.wait("new") == 2
    assert daemon.wait("old") == 6
    daemon.delete("old")
    daemon.delete("new")


def test_exit_event_of_a_container_that_ended_while_the_daemon_was_dead(daemon: Supervisor) -> None:
    daemon.create("silent", "sh", "-c", "sleep 0.4; exit 8")
    daemon.start_task("silent")
    daemon.kill()
    time.sleep(0.7)
    daemon.start()
    events = daemon.subscribe("topic==/tasks/exit")
    # The shim sends what was never acknowledged as soon as it can connect; either it is already taken, or it comes.
    assert daemon.get("silent").exit_status == 8
    daemon.create("next", "true")
    daemon.start_task("next")
    ids = set()
    while "next" not in ids:
        exited = event_types_pb2.TaskExit.FromString(next(events).event.value)
        ids.add(exited.container_id)
    events.cancel()
    daemon.wait("next")
    daemon.delete("next")
    assert daemon.delete("silent") == 8


def test_kill_at_any_instant(daemon: Supervisor) -> None:
    """kill -9 of the daemon at random moments of create, start and delete: nothing is lost, nothing is left."""
    chance = random.Random(20)
    for turn in range(8):
        id = f"chaos{turn}"
        delay = chance.uniform(0.0, 0.04)
        killer = daemon.host.popen(
            "sh", "-c", f"sleep {delay:.4f}; kill -9 {daemon.host.inner_pid(daemon.daemon_pid())}"
        )
        try:
            daemon.create(id, "sh", "-c", "exit 3")
            daemon.start_task(id)
            daemon.wait(id)
            daemon.delete_task(id)
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error
        assert killer.wait(10) == 0
        assert daemon.process is not None
        daemon.process.wait(10)
        daemon.start()
        for task in daemon.tasks.List(tasks_pb2.ListTasksRequest(), metadata=METADATA).tasks:
            if task.status in (task_types_pb2.CREATED, task_types_pb2.RUNNING):
                daemon.signal(task.id, 9)
            daemon.tasks.Wait(tasks_pb2.WaitRequest(container_id=task.id), metadata=METADATA, timeout=CALL_SECONDS)
            daemon.delete_task(task.id)
        bundles = daemon.bundle("x").parent
        assert not bundles.exists() or list(bundles.iterdir()) == []


def test_sigterm_leaves_containers_alone(daemon: Supervisor) -> None:
    daemon.create("stays", "sleep", "100")
    daemon.start_task("stays")
    init = daemon.init_pid("stays")
    done = daemon.shutdown()
    assert done.returncode == 1
    assert "1 tasks go on" in done.stderr
    assert alive(init)
    daemon.start()
    assert daemon.get("stays").status == task_types_pb2.RUNNING


def test_one_daemon_for_one_directory(shared: Supervisor) -> None:
    second = shared.host.run(*shared.command("--address", f"{shared.state}/other.sock"))
    assert second.returncode == 1
    assert "another containerd-py (pid" in second.stderr


@pytest.mark.skipif(
    shutil.which("containerd-shim-runc-v2") is None, reason="needs containerd's own shim (apt: containerd)"
)
def test_containerds_own_shim(daemon: Supervisor) -> None:
    daemon.host.check("mkdir", "-p", "/run/containerd")
    daemon.host.check("mount", "-t", "tmpfs", "tmpfs", "/run/containerd")
    runtime = "io.containerd.runc.v2"
    events = daemon.subscribe("topic~=^/tasks/")
    daemon.create("foreign", "sh", "-c", "sleep 6; exit 7", runtime=runtime)
    daemon.start_task("foreign")
    assert [next(events).topic for _ in range(2)] == ["/tasks/create", "/tasks/start"]
    daemon.kill()
    daemon.start()
    events = daemon.subscribe("topic~=^/tasks/")
    assert daemon.wait("foreign") == 7
    assert daemon.delete("foreign") == 7
    assert [next(events).topic for _ in range(2)] == ["/tasks/exit", "/tasks/delete"]
    daemon.create("killed", "sleep", "100", runtime=runtime)
    daemon.start_task("killed")
    waiting = daemon.wait_later("killed")
    daemon.kill(*daemon.host.pids_of("containerd-shim-runc-v2", "killed"))
    assert waiting.result().exit_status == 137
    assert daemon.delete("killed") == 137
    events.cancel()
    daemon.host.check("umount", "/run/containerd")
