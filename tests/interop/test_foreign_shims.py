"""containerd-py runs shims that are not ours: the distribution's containerd-shim-runc-v2, with runc and with gVisor.

Every life goes through the protocol's whole breadth (stdio by FIFO, exec, signals, limits, exit code) with the daemon
killed in the middle of it.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos.containerd import task_types_pb2, tasks_pb2
from tests.integration.tasks.supervisor import Supervisor, supervisor
from tests.interop.fifo_lives import Stdio, call, create, execute, gvisor
from tests.support.host import wait_for

RUNTIME = "io.containerd.runc.v2"

pytestmark = pytest.mark.skipif(
    shutil.which("containerd-shim-runc-v2") is None, reason="needs containerd's own shim (apt: containerd)"
)


@pytest.fixture
def daemon(busybox_tar: bytes) -> Iterator[Supervisor]:
    with supervisor(busybox_tar) as made:
        # Where these shims put their sockets, whatever the daemon's own directories are.
        made.host.check("mkdir", "-p", "/run/containerd")
        made.host.check("mount", "-t", "tmpfs", "tmpfs", "/run/containerd")
        yield made
        made.host.check("umount", "/run/containerd")


def test_a_life_under_the_go_shim(daemon: Supervisor, tmp_path: Path) -> None:
    stdio = Stdio(tmp_path / "init")
    script = (
        "echo ready; while read word; do echo got $word; echo err $word >&2; [ $word = end ] && exit 7; done; exit 1"
    )
    pid = create(daemon, "whole", ["sh", "-c", script], stdio, runtime=RUNTIME)
    assert call(daemon, "Start", tasks_pb2.StartRequest(container_id="whole")).pid == pid
    stdio.begin()
    wait_for(lambda: stdio.seen("stdout") == b"ready\n", "the first line")
    stdio.stdin.write(b"one\n")
    wait_for(lambda: stdio.seen("stderr") == b"err one\n", "standard error")
    inner = Stdio(tmp_path / "e1")
    assert execute(daemon, "whole", "e1", "echo in; exit 4", inner) == 4
    wait_for(lambda: inner.ended() and inner.seen("stdout") == b"in\n", "the exec's output")

    daemon.kill()
    stdio.stdin.write(b"two\n")
    time.sleep(0.2)
    daemon.start()

    assert daemon.get("whole").status == task_types_pb2.RUNNING
    assert execute(daemon, "whole", "e2", "exit 5", Stdio(tmp_path / "e2")) == 5
    assert pid in [p.pid for p in call(daemon, "ListPids", tasks_pb2.ListPidsRequest(container_id="whole")).processes]
    call(daemon, "Pause", tasks_pb2.PauseTaskRequest(container_id="whole"))
    assert daemon.get("whole").status == task_types_pb2.PAUSED
    call(daemon, "Resume", tasks_pb2.ResumeTaskRequest(container_id="whole"))
    metrics = call(daemon, "Metrics", tasks_pb2.MetricsRequest(filters=["id==whole"])).metrics
    assert metrics[0].data.type_url.endswith("Metrics")
    waiting = daemon.wait_later("whole")
    stdio.stdin.write(b"end\n")
    assert waiting.result().exit_status == 7
    wait_for(stdio.ended, "the end of both streams")
    assert stdio.seen("stdout") == b"ready\ngot one\ngot two\ngot end\n"
    assert daemon.delete("whole") == 7


def test_a_kill_and_an_exit_while_the_daemon_is_dead(daemon: Supervisor, tmp_path: Path) -> None:
    for name, script in (("ends", "sleep 0.5; exit 9"), ("killed", "sleep 100")):
        stdio = Stdio(tmp_path / name)
        create(daemon, name, ["sh", "-c", script], stdio, runtime=RUNTIME)
        daemon.start_task(name)
        stdio.begin()
    daemon.kill()
    time.sleep(1)
    daemon.start()
    assert daemon.wait("ends") == 9
    daemon.signal("killed", 9)
    assert daemon.wait("killed") == 137
    assert (daemon.delete("ends"), daemon.delete("killed")) == (9, 137)


def test_a_killed_go_shim_takes_its_container_along(daemon: Supervisor, tmp_path: Path) -> None:
    stdio = Stdio(tmp_path / "lost")
    pid = create(daemon, "lost", ["sleep", "100"], stdio, runtime=RUNTIME)
    daemon.start_task("lost")
    waiting = daemon.wait_later("lost")
    daemon.kill(*daemon.host.pids_of("containerd-shim-runc-v2", "lost"))
    assert waiting.result().exit_status == 137
    assert daemon.delete("lost") == 137
    assert str(pid) not in [daemon.host.inner_pid(p) for p in daemon.host.processes()]


def test_what_the_go_shim_refuses_is_passed_on(daemon: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(grpc.RpcError) as error:
        create(daemon, "absent", ["/no/such"], Stdio(tmp_path / "absent"), runtime=RUNTIME)
    assert "no such file" in str(error.value.details())
    assert not daemon.bundle("absent").exists()


@pytest.mark.skipif(shutil.which("runsc") is None, reason="needs gVisor's runtime (apt: runsc)")
def test_gvisor_under_the_go_shim(daemon: Supervisor, tmp_path: Path) -> None:
    stdio = Stdio(tmp_path / "gvisor")
    script = "dmesg | head -1 >&2; echo ready; read word; echo got $word; exit 6"
    create(daemon, "gvisor", ["sh", "-c", script], stdio, runtime=RUNTIME, binary=gvisor(tmp_path))
    daemon.start_task("gvisor")
    stdio.begin()
    wait_for(lambda: stdio.seen("stdout") == b"ready\n", "the first line")
    assert b"gVisor" in stdio.seen("stderr")
    assert execute(daemon, "gvisor", "e1", "exit 4", Stdio(tmp_path / "e1")) == 4
    daemon.kill()
    daemon.start()
    assert daemon.get("gvisor").status == task_types_pb2.RUNNING
    waiting = daemon.wait_later("gvisor")
    stdio.stdin.write(b"end\n")
    assert waiting.result().exit_status == 6
    wait_for(stdio.ended, "the end of both streams")
    assert stdio.seen("stdout") == b"ready\ngot end\n"
    with contextlib.suppress(grpc.RpcError):
        daemon.signal("gvisor", 9)
    assert daemon.delete("gvisor") == 6
