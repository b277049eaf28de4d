"""Our shim runs any OCI runtime: runc, crun, gVisor and our own by its command line; daemon and shim are killed."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos.containerd import task_types_pb2, tasks_pb2
from tests.integration.tasks.supervisor import Supervisor, supervisor
from tests.interop.fifo_lives import Stdio, call, create, execute, gvisor
from tests.support.host import REPOSITORY, wait_for

UNIFIED = "/sys/fs/cgroup/unified"


@pytest.fixture(scope="module")
def daemon(busybox_tar: bytes) -> Iterator[Supervisor]:
    with supervisor(busybox_tar) as made:
        if Path(UNIFIED).is_dir():
            # crun 1.8 refuses hosts on which the second hierarchy has controllers beside those of the first.
            made.host.check("umount", UNIFIED)
        yield made


@pytest.fixture(params=["in-process", "runc-py", "runc", "crun", "runsc"])
def binary(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What ``Options.binary_name`` says."""
    if request.param == "in-process":
        return ""
    if request.param == "runc-py":
        wrapper = tmp_path / "our-runtime"  # by this name it is a program like any other
        wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -P -m runc_py.main "$@"\n')
        wrapper.chmod(0o755)
        return str(wrapper)
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    return gvisor(tmp_path) if request.param == "runsc" else str(request.param)


def test_a_life(daemon: Supervisor, binary: str, tmp_path: Path) -> None:
    name = f"life-{Path(binary).name or 'own'}"
    has_cgroups = Path(binary).name != "runsc"
    stdio = Stdio(tmp_path / "init")
    script = (
        "echo ready; while read word; do echo got $word; echo err $word >&2; [ $word = end ] && exit 7; done; exit 1"
    )
    create(daemon, name, ["sh", "-c", script], stdio, binary=binary)
    daemon.start_task(name)
    stdio.begin()
    wait_for(lambda: stdio.seen("stdout") == b"ready\n", "the first line")
    inner = Stdio(tmp_path / "e1")
    assert execute(daemon, name, "e1", "echo in; exit 4", inner) == 4
    wait_for(lambda: inner.ended() and inner.seen("stdout") == b"in\n", "the exec's output")

    daemon.kill()
    stdio.stdin.write(b"one\n")
    daemon.start()
    assert daemon.get(name).status == task_types_pb2.RUNNING
    wait_for(lambda: stdio.seen("stderr") == b"err one\n", "standard error")

    daemon.kill(*(pid for pid in daemon.named("gantry-shim")))
    stdio.stdin.write(b"two\n")
    assert execute(daemon, name, "e2", "exit 5", Stdio(tmp_path / "e2")) == 5
    assert daemon.get(name).status == task_types_pb2.RUNNING
    if has_cgroups:
        call(daemon, "Pause", tasks_pb2.PauseTaskRequest(container_id=name))
        assert daemon.get(name).status == task_types_pb2.PAUSED
        call(daemon, "Resume", tasks_pb2.ResumeTaskRequest(container_id=name))
        assert call(daemon, "ListPids", tasks_pb2.ListPidsRequest(container_id=name)).processes
    waiting = daemon.wait_later(name)
    stdio.stdin.write(b"end\n")
    assert waiting.result().exit_status == 7
    wait_for(stdio.ended, "the end of both streams")
    assert stdio.seen("stdout") == b"ready\ngot one\ngot two\ngot end\n"
    assert daemon.delete(name) == 7
    assert not daemon.bundle(name).exists()


def test_a_kill(daemon: Supervisor, binary: str, tmp_path: Path) -> None:
    name = f"kill-{Path(binary).name or 'own'}"
    create(daemon, name, ["sleep", "100"], Stdio(tmp_path / "init"), binary=binary)
    daemon.start_task(name)
    with pytest.raises(grpc.RpcError) as error:
        daemon.delete_task(name)
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    daemon.signal(name, 9)
    assert daemon.wait(name) == 137
    assert daemon.delete(name) == 137


def test_a_missing_program(daemon: Supervisor, binary: str, tmp_path: Path) -> None:
    name = f"none-{Path(binary).name or 'own'}"
    with pytest.raises(grpc.RpcError) as error:
        create(daemon, name, ["/no/such"], Stdio(tmp_path / "init"), binary=binary)
        daemon.start_task(name)
    assert "no such file" in str(error.value.details()).lower()
    for _ in range(2):  # gVisor tells of it only when the program has run and failed
        with contextlib.suppress(grpc.RpcError):
            daemon.wait(name)
            daemon.delete_task(name)
    assert not daemon.bundle(name).exists()
