"""A shim killed in the middle of a call, or thought dead while it lives: what a replacement makes of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.shim.conftest import CallError, Host, Shim, read_all, wait_until
from tests.integration.shim.test_shim_runs_containers import exec_process

pytestmark = pytest.mark.root

NOT_FOUND, STOPPED = 5, 3


def replaced(shim: Shim) -> None:
    shim.kill_shim()
    shim.restore()


def test_a_create_that_was_cut_off_is_undone(host: Host) -> None:
    shim = host.shim("a", ["sleep", "60"])
    pid = shim.create()["pid"]
    # As if the shim had died behind the runtime's create and in front of its own record.
    (shim.bundle / "processes" / "init").unlink()
    replaced(shim)
    with pytest.raises(CallError) as caught:
        shim.client.call("State", id="a")
    assert caught.value.code == NOT_FOUND
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert not list(Path("/sys/fs/cgroup").glob(f"*/gantry-test-{os.getpid()}/a"))
    assert host.keeper({"op": "list"}) == {"keys": []}
    assert not Path(shim.attach_path).exists()


def test_a_start_that_was_not_told_is_told(host: Host) -> None:
    shim = host.shim("a", ["sleep", "60"])
    shim.create()
    shim.start()
    host.events.wait_for("/tasks/start")
    record = shim.bundle / "processes" / "init"
    record.write_text(record.read_text().replace('"started"', '"starting"'))
    replaced(shim)
    host.events.wait_for("/tasks/start", 2)
    assert '"started"' in record.read_text()


def test_an_exec_that_was_cut_off_ends(host: Host) -> None:
    shim = host.shim("a", ["sleep", "60"])
    shim.create()
    shim.start()
    exec_process(shim, "e", ["sleep", "61"])
    pid = shim.client.call("Start", id="a", exec_id="e")["pid"]
    record = shim.bundle / "processes" / "e"
    record.write_text(record.read_text().replace('"started"', '"starting"').replace(f'"e",{pid},', '"e",0,'))
    replaced(shim)
    assert shim.wait("e") == 255
    assert shim.client.call("State", id="a", exec_id="e")["status"] == STOPPED
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    shim.client.call("Delete", id="a", exec_id="e")


def test_a_shim_that_only_seemed_dead_is_evicted(host: Host) -> None:
    """Two shims pumping the same pipes would write over each other's bytes."""
    shim = host.shim("a", ["sh", "-c", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done; exit 3"])
    shim.create()
    old = shim.pid
    os.kill(old, signal.SIGSTOP)
    shim.restore()
    wait_until(lambda: host.zygote({"op": "reaped", "pid": old})["status"] is not None)
    shim.start()
    assert shim.wait() == 3
    assert shim.output() == b"".join(b"line %d\n" % n for n in range(1, 2001))


def test_shim_and_keeper_killed_together(host: Host) -> None:
    """Nobody holds the pipe any more but the container: it goes on, and nothing that it says is lost."""
    script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.002; done; sleep 1; exit 4"
    shim = host.shim("a", ["sh", "-c", script])
    shim.create()
    shim.start()
    wait_until(shim.output)
    keeper = host.keeper({"op": "ping"})["pid"]
    os.kill(keeper, signal.SIGKILL)
    shim.kill_shim()
    wait_until(lambda: host.zygote({"op": "reaped", "pid": keeper})["status"] is not None)
    host.start_keeper()
    shim.restore()
    assert shim.wait() == 4
    assert shim.output() == b"".join(b"line %d\n" % n for n in range(1, 301))


def test_two_helpers_that_find_a_dead_socket_leave_one(host: Host) -> None:
    pid = host.keeper({"op": "ping"})["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: host.zygote({"op": "reaped", "pid": pid})["status"] is not None)
    started = [host.start_keeper(wait=False) for _ in range(4)]
    wait_until(lambda: sum(process.poll() is not None for process in started) == 3)
    assert host.keeper({"op": "ping"})["pid"] in {process.pid for process in started if process.poll() is None}


def test_an_ended_container_is_attached_to_after_a_kill(host: Host) -> None:
    """Its log is replayed and ends, and its socket goes with it."""
    shim = host.shim("a", ["sh", "-c", "echo said; exit 3"])
    assert shim.run() == 3
    replaced(shim)
    with shim.attach(stdout=True, stderr=True, raw=True, stdout_offset=0) as peer:
        assert read_all(peer) == b"said\n"
    assert shim.delete()["exit_status"] == 3
    assert not Path(shim.attach_path).exists()
