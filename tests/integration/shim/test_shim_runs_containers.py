"""The shim with the in-process runtime: a whole life, stdio of every kind, exec, signals, events."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from protos import attach, rawlog
from tests.integration.shim.conftest import NAMESPACE, CallError, Host, Shim, read_all, wait_until

pytestmark = pytest.mark.root

NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION = 5, 6, 9


def exec_process(shim: Shim, exec_id: str, args: list[str], **request: Any) -> None:
    spec = json.loads((shim.bundle / "config.json").read_text())["process"] | {"args": args}
    value = {
        "type_url": "types.containerd.io/opencontainers/runtime-spec/1/Process",
        "value": json.dumps(spec).encode(),
    }
    shim.client.call("Exec", id=shim.name, exec_id=exec_id, spec=value, **request)


@contextlib.contextmanager
def fifo_reader(path: Path) -> Any:
    """A FIFO and a list that gets everything read from it, up to its end of file."""
    os.mkfifo(path)
    got: list[bytes] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    opened = threading.Event()

    def read() -> None:
        opened.wait()
        with open(descriptor, "rb") as file:
            got.append(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield got, opened, thread
    finally:
        opened.set()
        thread.join(10)
        assert not thread.is_alive(), "no end of file on the FIFO"


def test_output_exit_code_and_event_order(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert shim.run() == 7
    assert (shim.output(), shim.output("stderr")) == (b"out\n", b"err\n")
    record = json.loads((shim.bundle / "exits" / "init").read_text())
    assert record["exit_status"] == 7
    assert shim.delete()["exit_status"] == 7
    host.events.wait_for("/tasks/delete")
    assert host.events.topics() == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert host.events.wait_for("/tasks/exit")["id"] == "a"
    assert host.keeper({"op": "list"}) == {"keys": []}


def test_shutdown_leaves_nothing(host: Host) -> None:
    shim = host.shim("a", ["true"])
    assert shim.run() == 0
    shim.client.call("Shutdown", id="a")  # not empty: stays
    assert shim.client.call("Connect", id="a")["shim_pid"] == shim.pid
    shim.delete()
    shim.client.call("Shutdown", id="a")
    wait_until(lambda: not Path(f"/proc/{shim.pid}").exists())
    assert not Path(shim.socket_path).exists()
    assert not Path(shim.attach_path).exists()
    assert os.listdir(host.state / "runc" / NAMESPACE) == []
    cgroups = list(Path("/sys/fs/cgroup").glob(f"*/gantry-test-{os.getpid()}/a"))
    assert cgroups == []


def test_wait_before_and_after_the_exit(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "exit 3"])
    shim.create()
    early = shim.client.send("Wait", {"id": "a"})
    assert shim.client.call("State", id="a")["status"] == 1
    shim.start()
    assert shim.client.receive(early)["exit_status"] == 3
    late = shim.client.call("Wait", id="a")
    assert late["exit_status"] == 3
    assert late["exited_at"]["seconds"] > 0
    assert shim.client.call("State", id="a")["status"] == 3


def test_both_versions_of_the_service_answer(host: Host) -> None:
    shim = host.shim("a", ["true"])
    stream = shim.client.send("Connect", {"id": "a"}, "containerd.task.v3.Task")
    assert shim.client.receive(stream)["shim_pid"] == shim.pid


def test_errors_have_their_codes(host: Host) -> None:
    shim = host.shim("a", ["sleep", "60"])
    with pytest.raises(CallError, match="task a does not exist") as caught:
        shim.client.call("State", id="a")
    assert caught.value.code == NOT_FOUND
    shim.create()
    with pytest.raises(CallError) as caught:
        shim.create()
    assert caught.value.code == ALREADY_EXISTS
    shim.start()
    with pytest.raises(CallError, match="must be stopped") as caught:
        shim.delete()
    assert caught.value.code == FAILED_PRECONDITION
    with pytest.raises(CallError, match="checkpoint"):  # what is missing differs from machine to machine
        shim.client.call("Checkpoint", id="a", path=f"{shim.bundle}/checkpoint")
    assert shim.client.call("State", id="a")["status"] == 2
    shim.client.call("Kill", id="a", signal=signal.SIGKILL)
    assert shim.wait() == 137
    with pytest.raises(CallError, match="process already finished") as caught:
        shim.client.call("Kill", id="a", signal=signal.SIGKILL)
    assert caught.value.code == NOT_FOUND


def test_a_missing_program_is_said_in_dockers_words(host: Host) -> None:
    shim = host.shim("a", ["nonsense"])
    with pytest.raises(CallError, match='exec: "nonsense": executable file not found in \\$PATH'):
        shim.create()
        shim.start()


def test_a_created_container_can_be_deleted(host: Host) -> None:
    shim = host.shim("a", ["sleep", "60"])
    pid = shim.create()["pid"]
    assert shim.delete()["exit_status"] == 137
    assert not Path(f"/proc/{pid}").exists()
    assert host.events.wait_for("/tasks/delete")
    assert host.events.topics() == ["/tasks/create", "/tasks/exit", "/tasks/delete"]


def test_the_last_byte_is_in_the_log_before_anybody_hears_of_the_exit(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "seq 1 20000; seq 20001 20100 >&2"])
    assert shim.run() == 0
    assert shim.output() == b"".join(b"%d\n" % n for n in range(1, 20001))
    assert shim.output("stderr") == b"".join(b"%d\n" % n for n in range(20001, 20101))
    with rawlog.RawLog(str(shim.log)) as log:
        assert sum(1 for _ in rawlog.LineReader(log).lines()) == 20100


def test_attach_replays_follows_and_ends(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "echo before; read x; echo got $x; echo bad >&2"])
    shim.create(stdin=f"attach://{shim.attach_path}")
    with shim.attach(stdin=True, stdout=True, stderr=True, stdout_offset=0, stderr_offset=0) as peer:
        shim.start()
        decoder = attach.FrameDecoder()
        pieces = decoder.feed(peer.recv(4096))
        assert pieces == [(1, b"before\n")]
        peer.sendall(b"input\n")
        pieces = decoder.feed(read_all(peer))
    assert b"".join(data for stream, data in pieces if stream == 1) == b"got input\n"
    assert b"".join(data for stream, data in pieces if stream == 2) == b"bad\n"
    assert (shim.bundle / "exits" / "init").exists()
    with shim.attach(stdout=True, raw=True, stdout_offset=0) as late:
        assert read_all(late) == b"before\ngot input\n"


def test_half_close_ends_stdin_when_asked_for(host: Host) -> None:
    shim = host.shim("a", ["cat"])
    shim.create(stdin=f"attach://{shim.attach_path}?once=1")
    shim.start()
    data = os.urandom(300_000)
    with shim.attach(stdin=True, stdout=True, raw=True, stdout_offset=0) as peer:

        def feed() -> None:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=feed)
        sender.start()
        assert read_all(peer) == data
        sender.join()
    assert shim.wait() == 0


def test_a_client_that_closes_at_once_still_delivers_its_stdin(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "sleep 0.2; wc -c"])
    shim.create(stdin=f"attach://{shim.attach_path}?once=1")
    shim.start()
    with shim.attach(stdin=True) as peer:
        peer.sendall(b"x" * 200_000)
    assert shim.wait() == 0
    assert shim.output() == b"200000\n"


def test_closing_without_once_leaves_stdin_open_until_close_io(host: Host) -> None:
    shim = host.shim("a", ["cat"])
    shim.create(stdin=f"attach://{shim.attach_path}")
    shim.start()
    with shim.attach(stdin=True) as peer:
        peer.sendall(b"one\n")
    with shim.attach(stdin=True) as peer:
        peer.sendall(b"two\n")
        wait_until(lambda: shim.output() == b"one\ntwo\n")
    assert shim.client.call("State", id="a")["status"] == 2
    shim.client.call("CloseIO", id="a", stdin=True)
    assert shim.wait() == 0


def test_a_slow_client_blocks_nobody(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "dd if=/dev/zero bs=65536 count=64 2>/dev/null"])
    shim.create()
    with shim.attach(stdout=True, raw=True, stdout_offset=0) as slow:
        shim.start()
        assert shim.wait() == 0
        assert len(read_all(slow)) == 64 * 65536


def test_terminal_with_size_and_attach(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "read x; stty size; echo got $x"], terminal=True)
    shim.create(terminal=True, stdin=f"attach://{shim.attach_path}", stderr="")
    shim.start()
    shim.client.call("ResizePty", id="a", width=97, height=31)
    with shim.attach(stdin=True, stdout=True, raw=True, stdout_offset=0) as peer:
        peer.sendall(b"word\n")
        text = read_all(peer)
    assert text == b"word\r\n31 97\r\ngot word\r\n"
    assert shim.wait() == 0
    assert shim.output() == text


def test_init_with_fifos(host: Host, tmp_path: Path) -> None:
    shim = host.shim("a", ["sh", "-c", "cat; echo end >&2"])
    os.mkfifo(tmp_path / "in")
    with fifo_reader(tmp_path / "out") as (out, opened, _), fifo_reader(tmp_path / "err") as (err, opened_err, _):
        paths = {"stdin": "in", "stdout": "out", "stderr": "err"}
        shim.create(**{name: str(tmp_path / path) for name, path in paths.items()})
        opened.set()
        opened_err.set()
        shim.start()
        with (tmp_path / "in").open("wb") as stdin:
            stdin.write(b"through\n")
        shim.client.call("CloseIO", id="a", stdin=True)
        assert shim.wait() == 0
    assert (out, err) == ([b"through\n"], [b"end\n"])


def test_output_to_a_file(host: Host, tmp_path: Path) -> None:
    shim = host.shim("a", ["echo", "filed"])
    assert shim.run(stdout=f"file://{tmp_path}/sub/out", stderr="") == 0
    assert (tmp_path / "sub" / "out").read_bytes() == b"filed\n"


def test_exec_with_fifos_and_its_events(host: Host, tmp_path: Path) -> None:
    shim = host.shim("a", ["sleep", "60"])
    shim.create()
    shim.start()
    with fifo_reader(tmp_path / "out") as (out, opened, _):
        exec_process(shim, "e1", ["sh", "-c", "echo hi; exit 5"], stdout=str(tmp_path / "out"))
        pid = shim.client.call("Start", id="a", exec_id="e1")["pid"]
        opened.set()
        assert shim.wait("e1") == 5
    assert out == [b"hi\n"]
    state = shim.client.call("State", id="a", exec_id="e1")
    assert (state["pid"], state["status"], state["exit_status"]) == (pid, 3, 5)
    assert shim.client.call("Delete", id="a", exec_id="e1")["exit_status"] == 5
    with pytest.raises(CallError, match="process e1 does not exist"):
        shim.client.call("State", id="a", exec_id="e1")
    host.events.wait_for("/tasks/exit")
    assert host.events.topics()[2:] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    assert host.events.seen[-1][1]["id"] == "e1"
    assert host.keeper({"op": "get", "key": f"{NAMESPACE}/a"})["names"] == ["stdout", "stderr", "pidfd"]


def test_exec_with_stdin_and_terminal(host: Host, tmp_path: Path) -> None:
    shim = host.shim("a", ["sleep", "60"])
    shim.create()
    shim.start()
    os.mkfifo(tmp_path / "in")
    with fifo_reader(tmp_path / "out") as (out, opened, _):
        fifos = {"stdin": str(tmp_path / "in"), "stdout": str(tmp_path / "out")}
        exec_process(shim, "e1", ["sh", "-c", "read x; stty size; echo $x"], terminal=True, **fifos)
        shim.client.call("Start", id="a", exec_id="e1")
        opened.set()
        shim.client.call("ResizePty", id="a", exec_id="e1", width=50, height=20)
        with (tmp_path / "in").open("wb") as stdin:
            stdin.write(b"typed\n")
        assert shim.wait("e1") == 0
    assert out == [b"typed\r\n20 50\r\ntyped\r\n"]


def test_exec_errors_are_said_and_leave_an_ended_process(host: Host) -> None:
    shim = host.shim("a", ["sleep", "60"])
    shim.create()
    shim.start()
    exec_process(shim, "e1", ["nonsense"])
    with pytest.raises(CallError, match="executable file not found"):
        shim.client.call("Start", id="a", exec_id="e1")
    shim.client.call("Delete", id="a", exec_id="e1")
    with pytest.raises(CallError, match="exec id"):
        exec_process(shim, "init", ["true"])


def test_inits_exit_comes_after_its_execs(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "read x"])
    shim.create(stdin=f"attach://{shim.attach_path}?once=1")
    shim.start()
    for number in range(3):
        exec_process(shim, f"e{number}", ["sleep", "60"])
        shim.client.call("Start", id="a", exec_id=f"e{number}")
    shim.client.call("CloseIO", id="a", stdin=True)
    assert shim.wait() == 1
    host.events.wait_for("/tasks/exit", 4)
    exits = [event["id"] for topic, event in host.events.seen if topic == "/tasks/exit"]
    assert (sorted(exits[:3]), exits[3]) == (["e0", "e1", "e2"], "a")


def test_kill_pids_pause_and_stats(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "trap 'exit 9' TERM; sleep 60 & wait"])
    pid = shim.create()["pid"]
    shim.start()
    wait_until(lambda: len(shim.client.call("Pids", id="a")["processes"]) == 2)
    assert pid in [entry["pid"] for entry in shim.client.call("Pids", id="a")["processes"]]
    shim.client.call("Pause", id="a")
    assert shim.client.call("State", id="a")["status"] == 4
    shim.client.call("Resume", id="a")
    assert shim.client.call("Stats", id="a")["stats"]["type_url"].startswith("io.containerd.cgroups.v")
    shim.client.call("Kill", id="a", signal=signal.SIGTERM)
    assert shim.wait() == 9
    host.events.wait_for("/tasks/exit")
    assert host.events.topics()[2:4] == ["/tasks/paused", "/tasks/resumed"]


def test_a_container_out_of_memory_is_reported(host: Host) -> None:
    limit = {"memory": {"limit": 16 << 20}}
    shim = host.shim("a", ["sh", "-c", "x=$(dd if=/dev/zero bs=1M count=64 | tr '\\0' x)"], resources=limit)
    assert shim.run() == 137
    host.events.wait_for("/tasks/exit")
    assert host.events.topics()[-2:] == ["/tasks/oom", "/tasks/exit"]


def test_events_wait_for_containerd_and_come_in_order(host: Host) -> None:
    host.events.stop()
    shim = host.shim("a", ["true"])
    assert shim.run() == 0
    assert (shim.bundle / "events").stat().st_size > 0
    host.events.start()
    host.events.wait_for("/tasks/exit")
    assert host.events.topics() == ["/tasks/create", "/tasks/start", "/tasks/exit"]
    wait_until(lambda: (shim.bundle / "events").stat().st_size == 0)


def test_no_descriptor_leaks_into_the_container_or_the_shim(host: Host) -> None:
    shim = host.shim("a", ["sh", "-c", "echo /proc/self/fd/*; sleep 60"])
    shim.create()
    shim.start()
    wait_until(lambda: shim.output().endswith(b"\n"))
    numbers = {int(name.rpartition(b"/")[2]) for name in shim.output().split()}
    assert numbers <= {0, 1, 2, 3}  # 3 is the directory that the shell itself lists
    before = len(os.listdir(f"/proc/{shim.pid}/fd"))
    for number in range(5):
        exec_process(shim, f"e{number}", ["true"])
        shim.client.call("Start", id="a", exec_id=f"e{number}")
        shim.wait(f"e{number}")
        shim.client.call("Delete", id="a", exec_id=f"e{number}")
    assert len(os.listdir(f"/proc/{shim.pid}/fd")) == before
