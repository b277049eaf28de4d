"""The worker that a shim finds ready for its container: used, gone when it is not, and not missed when it is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from protos.shim_messages import RUNC_OPTIONS
from runc_py.cgroups import layout
from shim.zygote import WORKER_SECONDS
from tests.integration.shim.conftest import Host, wait_until

pytestmark = pytest.mark.root


def children(pid: int, name: str) -> list[int]:
    """Children of a process by their name."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                found.append(int(child))
        except FileNotFoundError:
            continue
    return found


def only(pid: int, name: str, but: int = 0) -> int:
    """The one child of that name, once there is one."""
    found: list[int] = []

    def there() -> bool:
        found[:] = [child for child in children(pid, name) if child != but]
        return len(found) == 1

    wait_until(there)
    return found[0]


def gone(pid: int) -> bool:
    return not pid or not Path(f"/proc/{pid}").exists()


class Ready:
    """A zygote whose spare has a worker, because a shim was started before."""

    def __init__(self, host: Host) -> None:
        first = host.shim("first", ["true"]).pid
        zygote = host.zygote({"op": "ping"})["pid"]
        self.spare = only(zygote, "gantry-spare", but=first)
        self.worker = only(self.spare, "gantry-worker")
        self.init = 0 if layout.current().unified else only(self.spare, "runc-py:[WAIT]")


def test_the_worker_makes_the_container(host: Host) -> None:
    ready = Ready(host)
    shim = host.shim("a", ["sh", "-c", "echo $$; exit 3"])
    assert shim.pid == ready.spare
    pid = shim.create()["pid"]
    if not layout.current().unified:
        assert pid == ready.init
    shim.start()
    assert shim.wait() == 3
    assert shim.output() == b"1\n"
    wait_until(lambda: gone(ready.worker) and gone(ready.init))
    shim.delete()


def test_a_worker_that_was_killed_is_not_missed(host: Host) -> None:
    ready = Ready(host)
    os.kill(ready.worker, signal.SIGKILL)
    shim = host.shim("a", ["sh", "-c", "exit 4"])
    assert shim.run() == 4
    wait_until(lambda: gone(ready.worker) and gone(ready.init))


def test_a_worker_may_be_killed_at_work(host: Host) -> None:
    ready = Ready(host)
    shim = host.shim("a", ["sh", "-c", "exit 5"])
    os.kill(ready.worker, signal.SIGSTOP)
    stream = shim.client.send("Create", {"id": "a", "bundle": str(shim.bundle)})
    time.sleep(0.1)
    os.kill(ready.worker, signal.SIGKILL)
    assert shim.client.receive(stream)["pid"]
    shim.start()
    assert shim.wait() == 5
    wait_until(lambda: gone(ready.worker) and gone(ready.init))


def test_a_worker_dies_with_its_shim(host: Host) -> None:
    ready = Ready(host)
    shim = host.shim("a", ["true"])
    shim.kill_shim()
    wait_until(lambda: gone(ready.worker) and gone(ready.init))


def test_another_runtime_needs_no_worker(host: Host) -> None:
    ready = Ready(host)
    shim = host.shim("a", ["sh", "-c", "exit 6"])
    value = RUNC_OPTIONS.encode({"binary_name": "runc"})
    assert shim.run(options={"type_url": RUNC_OPTIONS.name, "value": value}) == 6
    wait_until(lambda: gone(ready.worker) and gone(ready.init))


def test_a_worker_does_not_wait_for_ever(host: Host) -> None:
    ready = Ready(host)
    wait_until(lambda: gone(ready.worker) and gone(ready.init), WORKER_SECONDS + 20)
    shim = host.shim("a", ["sh", "-c", "exit 7"])
    assert shim.pid == ready.spare
    assert shim.run() == 7


def test_a_container_that_cannot_be_made_says_why(host: Host) -> None:
    ready = Ready(host)
    shim = host.shim("a", ["nonexistent"])
    with pytest.raises(Exception, match='exec: "nonexistent": executable file not found'):
        shim.create()
    wait_until(lambda: gone(ready.worker) and gone(ready.init))
