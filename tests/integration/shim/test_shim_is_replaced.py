"""kill -9 of a shim: the container goes on, a new shim takes over, no byte and no exit code is lost."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from protos import fdpass
from tests.integration.shim.conftest import NAMESPACE, Host, wait_until
from tests.integration.shim.test_shim_runs_containers import exec_process, fifo_reader

pytestmark = pytest.mark.root

COUNT = 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo "line $i"; echo "err $i" >&2; done; exit 7'


def test_every_line_once_over_repeated_kills(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "read go; " + COUNT])
    pid = shim.create(stdin=f"attach://{shim.attach_path}?once=1")["pid"]
    shim.start()
    with shim.attach(stdin=True) as peer:
        peer.sendall(b"go\n")
        wait_until(shim.output)
    for _ in range(8):
        shim.kill_shim()
        shim.restore()
    assert shim.client.call("Connect", id="a")["task_pid"] == pid
    assert shim.wait() == 7
    assert shim.output() == b"".join(b"line %d\n" % n for n in range(1, 3001))
    assert shim.output("stderr") == b"".join(b"err %d\n" % n for n in range(1, 3001))
    assert shim.delete()["exit_status"] == 7


def test_the_exit_code_of_a_container_that_ended_without_a_shim(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "read x; echo last; exit 9"])
    pid = shim.create(stdin=f"attach://{shim.attach_path}")["pid"]
    shim.start()
    with shim.attach(stdin=True) as peer:
        shim.kill_shim()
        del peer
    parked = fdpass.connect(str(host.state / "keeper.sock"))
    with parked:
        answer, descriptors = fdpass.call(parked, {"op": "get", "key": f"{NAMESPACE}/a"})
    os.write(descriptors[answer["names"].index("stdin")], b"x\n")
    fdpass.close_all(descriptors)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert not (shim.bundle / "exits" / "init").exists()
    shim.restore()
    assert shim.wait() == 9
    assert shim.output() == b"last\n"
    assert host.events.wait_for("/tasks/exit")["exit_status"] == 9
    assert shim.delete()["pid"] == pid


def test_a_stopped_task_is_still_stopped(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "exit 4"])
    assert shim.run() == 4
    shim.kill_shim()
    shim.restore()
    assert shim.wait() == 4
    assert shim.client.call("State", id="a")["status"] == 3
    assert shim.delete()["exit_status"] == 4


def test_a_created_container_can_be_started_by_the_next_shim(host: Host) -> None:
    shim = host.shim("a", ["echo", "started late"])
    shim.create()
    shim.kill_shim()
    shim.restore()
    assert shim.client.call("State", id="a")["status"] == 1
    shim.start()
    assert shim.wait() == 0
    assert shim.output() == b"started late\n"


def test_stdin_and_attach_go_on(host: Host) -> None:
    shim = host.shim("a", ["cat"])
    shim.create(stdin=f"attach://{shim.attach_path}?once=1")
    shim.start()
    with shim.attach(stdin=True, stdout=True, raw=True) as peer:
        peer.sendall(b"one\n")
        assert peer.recv(100) == b"one\n"
        shim.kill_shim()
        assert peer.recv(100) == b""
    shim.restore()
    with shim.attach(stdin=True, stdout=True, raw=True, stdout_offset=4) as peer:
        peer.sendall(b"two\n")
        peer.shutdown(1)
        assert peer.recv(100) == b"two\n"
        assert peer.recv(100) == b""
    assert shim.wait() == 0


def test_a_terminal_survives(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "read x; stty size; echo $x"], terminal=True)
    shim.create(terminal=True, stdin=f"attach://{shim.attach_path}", stderr="")
    shim.start()
    shim.kill_shim()
    shim.restore()
    shim.client.call("ResizePty", id="a", width=66, height=22)
    with shim.attach(stdin=True) as peer:
        peer.sendall(b"word\n")
        assert shim.wait() == 0
    assert shim.output() == b"word\r\n22 66\r\nword\r\n"


def test_an_exec_survives_and_init_still_ends_last(host: Host, tmp_path: Path) -> None:
    shim = host.shim("a", ["sleep", "60"])
    shim.create()
    shim.start()
    os.mkfifo(tmp_path / "in")
    with fifo_reader(tmp_path / "out") as (out, opened, _):
        fifos = {"stdin": str(tmp_path / "in"), "stdout": str(tmp_path / "out")}
        exec_process(shim, "e1", ["sh", "-c", "read x; echo $x; exit 6"], **fifos)
        shim.client.call("Start", id="a", exec_id="e1")
        opened.set()
        shim.kill_shim()
        shim.restore()
        with (tmp_path / "in").open("wb") as stdin:
            stdin.write(b"go on\n")
        assert shim.wait("e1") == 6
    assert out == [b"go on\n"]
    shim.client.call("Kill", id="a", signal=signal.SIGKILL)
    assert shim.wait() == 137


def test_a_new_keeper_gets_everything_again(host: Host) -> None:
    shim = host.shim("a", ["sleep", "60"])
    shim.create()
    shim.start()
    pid = host.keeper({"op": "ping"})["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: host.zygote({"op": "reaped", "pid": pid})["status"] is not None)
    host.start_keeper()
    wait_until(lambda: host.keeper({"op": "list"}) == {"keys": [f"{NAMESPACE}/a"]})
    shim.kill_shim()
    shim.restore()
    assert shim.client.call("State", id="a")["status"] == 2


def test_events_that_were_not_acknowledged_survive_the_shim(host: Host) -> None:
    host.events.stop()
    shim = host.shim("a", ["true"])
    assert shim.run() == 0
    shim.kill_shim()
    host.events.start()
    shim.restore()
    host.events.wait_for("/tasks/exit")
    topics = host.events.topics()
    assert list(dict.fromkeys(topics)) == ["/tasks/create", "/tasks/start", "/tasks/exit"]


def test_hammered_shim_loses_no_byte(host: Host) -> None:
    """Kills while data pours: the log equals what was written, byte for byte."""
    shim = host.shim("a", ["sh", "-c", "seq 1 200000"])
    shim.create()
    shim.start()
    stop = threading.Event()
    while not stop.wait(0.01):
        state = shim.client.call("State", id="a")
        if state["status"] == 3:
            break
        shim.kill_shim()
        shim.restore()
    assert shim.wait() == 0
    assert shim.output() == b"".join(b"%d\n" % n for n in range(1, 200001))
