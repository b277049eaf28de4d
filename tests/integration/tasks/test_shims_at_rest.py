"""A shim that has nothing to do is replaced by a fork that only waits, and nobody outside can tell."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.containerd import event_types_pb2, task_types_pb2, tasks_pb2
from tests.integration.tasks.supervisor import NAMESPACE, Supervisor, alive, supervisor
from tests.interop.fifo_lives import Stdio, call, create, execute, start_exec
from tests.support.host import is_at_rest, wait_for

ECHO = "while read word; do echo got $word; [ $word = end ] && exit 7; done; exit 1"


@pytest.fixture
def daemon(busybox_tar: bytes) -> Iterator[Supervisor]:
    """A daemon whose shims are at rest soon."""
    with supervisor(busybox_tar, GANTRY_SHIM_REST="0.2") as made:
        yield made


def private_kb(pid: int) -> int:
    """Memory of the process alone, KB (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def at_rest(daemon: Supervisor, id: str, before: int = 0) -> int:
    """Wait until the shim, which was ``before``, is at rest; its outer pid."""

    def seen() -> bool:
        try:
            shim = daemon.shim_pid(id)
        except StopIteration:
            return False  # in the middle of it
        return shim != before and is_at_rest(shim)

    wait_for(seen, f"the shim of {id} at rest")
    return daemon.shim_pid(id)


def start(daemon: Supervisor, id: str, directory: Path, script: str = ECHO) -> Stdio:
    stdio = Stdio(directory / id)
    create(daemon, id, ["sh", "-c", script], stdio)
    daemon.start_task(id)
    stdio.begin()
    return stdio


def test_it_goes_on_as_if_nothing_had_been(daemon: Supervisor, tmp_path: Path) -> None:
    stdio = start(daemon, "a", tmp_path)
    awake = daemon.shim_pid("a")
    used = private_kb(awake)
    waiting = daemon.wait_later("a")
    resting = at_rest(daemon, "a", awake)
    assert not alive(awake)
    assert private_kb(resting) < used / 2
    stdio.stdin.write(b"one\n")
    wait_for(lambda: stdio.seen("stdout") == b"got one\n", "an answer")
    assert alive(resting), "a process's own stdio is none of the shim's business"
    assert execute(daemon, "a", "e1", "echo in; exit 4", Stdio(tmp_path / "e1")) == 4
    again = at_rest(daemon, "a", resting)
    assert daemon.get("a").status == task_types_pb2.RUNNING
    assert daemon.shim_pid("a") == again, "what rested is the shim now"
    at_rest(daemon, "a", again)
    stdio.stdin.write(b"end\n")
    assert waiting.result().exit_status == 7
    wait_for(stdio.ended, "the end of both streams")
    assert stdio.seen("stdout") == b"got one\ngot end\n"
    assert daemon.delete("a") == 7
    assert not daemon.named("gantry-shim")


def test_it_wakes_at_the_end_of_its_container(daemon: Supervisor, tmp_path: Path) -> None:
    events = daemon.subscribe(f"namespace=={NAMESPACE},topic==/tasks/exit")
    stdio = start(daemon, "a", tmp_path)
    waiting = daemon.wait_later("a")
    at_rest(daemon, "a", daemon.shim_pid("a"))
    stdio.stdin.write(b"end\n")
    assert waiting.result().exit_status == 7
    exited = event_types_pb2.TaskExit.FromString(next(events).event.value)
    assert (exited.container_id, exited.exit_status) == ("a", 7)
    assert daemon.delete("a") == 7


def test_execs_that_run_and_that_have_ended_are_known(daemon: Supervisor, tmp_path: Path) -> None:
    stdio = start(daemon, "a", tmp_path)
    running, ended = Stdio(tmp_path / "running"), Stdio(tmp_path / "ended")
    for exec_id, script, streams in (("running", ECHO, running), ("ended", "exit 5", ended)):
        start_exec(daemon, "a", exec_id, script, streams)
    assert call(daemon, "Wait", tasks_pb2.WaitRequest(container_id="a", exec_id="ended")).exit_status == 5
    at_rest(daemon, "a", daemon.shim_pid("a"))
    running.stdin.write(b"end\n")
    assert call(daemon, "Wait", tasks_pb2.WaitRequest(container_id="a", exec_id="running")).exit_status == 7
    for exec_id, status in (("running", 7), ("ended", 5)):
        gone = call(daemon, "DeleteProcess", tasks_pb2.DeleteProcessRequest(container_id="a", exec_id=exec_id))
        assert gone.exit_status == status
    at_rest(daemon, "a", daemon.shim_pid("a"))
    daemon.signal("a", signal.SIGKILL)
    assert daemon.wait("a") == 137
    assert daemon.delete("a") == 137
    stdio.stdin.close()


@pytest.mark.parametrize("victims", [("gantry-shim",), ("gantry-template",), ("gantry-zygote", "gantry-template")])
def test_kills_while_it_rests(daemon: Supervisor, tmp_path: Path, victims: tuple[str, ...]) -> None:
    stdio = start(daemon, "a", tmp_path)
    waiting = daemon.wait_later("a")
    at_rest(daemon, "a", daemon.shim_pid("a"))
    daemon.kill(*(pid for name in victims for pid in daemon.named(name)))
    assert daemon.get("a").status == task_types_pb2.RUNNING
    at_rest(daemon, "a", 0)
    stdio.stdin.write(b"end\n")
    assert waiting.result().exit_status == 7
    assert daemon.delete("a") == 7


def test_it_outlives_the_daemon_at_rest(daemon: Supervisor, tmp_path: Path) -> None:
    start(daemon, "through", tmp_path)
    meanwhile = start(daemon, "meanwhile", tmp_path)
    for id in ("through", "meanwhile"):
        at_rest(daemon, id, 0)
    daemon.kill()
    meanwhile.stdin.write(b"end\n")
    wait_for((daemon.bundle("meanwhile") / "exits" / "init").exists, "the exit record")
    daemon.start()
    assert daemon.wait("meanwhile") == 7
    assert daemon.get("through").status == task_types_pb2.RUNNING
    at_rest(daemon, "through", 0)
    assert daemon.delete("meanwhile") == 7
    daemon.signal("through", signal.SIGKILL)
    daemon.wait("through")
    daemon.delete("through")


def test_a_new_keeper_gets_everything_from_a_shim_that_rested(daemon: Supervisor, tmp_path: Path) -> None:
    stdio = start(daemon, "a", tmp_path)
    resting = at_rest(daemon, "a", daemon.shim_pid("a"))
    daemon.kill(*daemon.named("gantry-keeper"))
    wait_for(lambda: bool(daemon.named("gantry-keeper")), "another keeper")
    resting = at_rest(daemon, "a", resting)
    daemon.kill(resting)  # the one that takes over finds stdin held open at the new keeper
    assert daemon.get("a").status == task_types_pb2.RUNNING
    stdio.stdin.write(b"end\n")
    assert daemon.wait("a") == 7
    assert daemon.delete("a") == 7


def test_paused_and_killed_for_want_of_memory(daemon: Supervisor, tmp_path: Path) -> None:
    events = daemon.subscribe(f"namespace=={NAMESPACE},topic==/tasks/oom")
    hog = "read word; x=$(yes | head -c 100000000); exit 3"
    stdio = Stdio(tmp_path / "a")
    create(daemon, "a", ["sh", "-c", hog], stdio, limits={"memory": {"limit": 16 << 20}})
    daemon.start_task("a")
    stdio.begin()
    call(daemon, "Pause", tasks_pb2.PauseTaskRequest(container_id="a"))
    paused = at_rest(daemon, "a", daemon.shim_pid("a"))
    assert daemon.get("a").status == task_types_pb2.PAUSED
    call(daemon, "Resume", tasks_pb2.ResumeTaskRequest(container_id="a"))
    at_rest(daemon, "a", paused)
    stdio.stdin.write(b"go\n")
    assert event_types_pb2.TaskOOM.FromString(next(events).event.value).container_id == "a"
    daemon.wait("a")
    daemon.delete("a")


def test_a_list_of_tasks_wakes_nobody(daemon: Supervisor, tmp_path: Path) -> None:
    def listed() -> dict[str, int]:
        return {task.id: task.status for task in call(daemon, "List", tasks_pb2.ListTasksRequest()).tasks}

    create(daemon, "created", ["true"], Stdio(tmp_path / "created"))
    start(daemon, "paused", tmp_path)
    ending = start(daemon, "running", tmp_path)
    call(daemon, "Pause", tasks_pb2.PauseTaskRequest(container_id="paused"))
    daemon.get("paused")
    resting = {id: at_rest(daemon, id) for id in ("paused", "running")}
    expected = {
        "created": task_types_pb2.CREATED,
        "paused": task_types_pb2.PAUSED,
        "running": task_types_pb2.RUNNING,
    }
    assert listed() == expected
    assert all(is_at_rest(shim) for shim in resting.values())
    call(daemon, "Resume", tasks_pb2.ResumeTaskRequest(container_id="paused"))
    ending.stdin.write(b"end\n")
    wait_for((daemon.bundle("running") / "exits" / "init").exists, "the exit record")
    assert listed() == {**expected, "paused": task_types_pb2.RUNNING, "running": task_types_pb2.STOPPED}
    daemon.start_task("created")
    assert daemon.wait("created") == 0
    assert listed()["created"] == task_types_pb2.STOPPED
    daemon.signal("paused", signal.SIGKILL)
    for id, status in (("created", 0), ("paused", 137), ("running", 7)):
        assert daemon.wait(id) == status
        daemon.delete(id)


def test_a_bundle_removed_at_rest_takes_its_shim_along(daemon: Supervisor, tmp_path: Path) -> None:
    start(daemon, "a", tmp_path)
    resting = at_rest(daemon, "a", daemon.shim_pid("a"))
    daemon.signal("a", signal.SIGKILL)
    assert daemon.wait("a") == 137
    daemon.delete("a")
    wait_for(lambda: not alive(resting), "the end of the shim")
    assert not daemon.bundle("a").exists()
