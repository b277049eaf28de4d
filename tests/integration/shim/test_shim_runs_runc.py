"""The same shim with the distribution's runc as its runtime, by its command line (crun refuses hybrid cgroup hosts)."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from protos.shim_messages import RUNC_OPTIONS
from tests.integration.shim.conftest import CallError, Host, Shim, read_all, wait_until
from tests.integration.shim.test_shim_runs_containers import exec_process, fifo_reader

pytestmark = [pytest.mark.root]


@pytest.fixture
def runtime() -> Any:
    assert shutil.which("runc"), "install runc"
    return {"type_url": RUNC_OPTIONS.name, "value": RUNC_OPTIONS.encode({"binary_name": "runc"})}


def is_mounted(shim: Shim) -> bool:
    """Whether the shim's mount namespace has something at the bundle's rootfs."""
    return f" {shim.bundle}/rootfs " in Path(f"/proc/{shim.pid}/mountinfo").read_text()


def test_a_whole_life_with_a_rootfs_mounted_on_the_host(host: Host, runtime: Any) -> None:
    shim = host.shim("a", ["sh", "-c", "echo out; echo err >&2; exit 7"], root="rootfs")
    rootfs = [{"type": "bind", "source": str(host.rootfs), "target": "", "options": ["rbind", "ro"]}]
    assert shim.run(options=runtime, rootfs=rootfs) == 7
    assert (shim.output(), shim.output("stderr")) == (b"out\n", b"err\n")
    assert is_mounted(shim)
    assert shim.delete()["exit_status"] == 7
    assert not is_mounted(shim)
    host.events.wait_for("/tasks/delete")
    assert host.events.topics() == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_a_terminal_by_console_socket(host: Host, runtime: Any) -> None:
    shim = host.shim("a", ["sh", "-c", "read x; stty size; echo $x"], terminal=True)
    shim.create(terminal=True, stdin=f"attach://{shim.attach_path}", stderr="", options=runtime)
    shim.start()
    shim.client.call("ResizePty", id="a", width=97, height=31)
    with shim.attach(stdin=True, stdout=True, raw=True, stdout_offset=0) as peer:
        peer.sendall(b"word\n")
        assert read_all(peer) == b"word\r\n31 97\r\nword\r\n"
    assert shim.wait() == 0
    shim.delete()


def test_exec_kill_and_pids(host: Host, runtime: Any, tmp_path: Path) -> None:
    shim = host.shim("a", ["sleep", "60"])
    pid = shim.create(options=runtime)["pid"]
    shim.start()
    assert [entry["pid"] for entry in shim.client.call("Pids", id="a")["processes"]] == [pid]
    with fifo_reader(tmp_path / "out") as (out, opened, _):
        exec_process(shim, "e1", ["sh", "-c", "echo hi; exit 5"], stdout=str(tmp_path / "out"))
        shim.client.call("Start", id="a", exec_id="e1")
        opened.set()
        assert shim.wait("e1") == 5
    assert out == [b"hi\n"]
    shim.client.call("Kill", id="a", signal=signal.SIGKILL)
    assert shim.wait() == 137
    shim.delete()
    wait_until(lambda: os.listdir(host.state / "runc" / "test") == [])


def test_the_runtimes_own_words_reach_the_client(host: Host, runtime: Any) -> None:
    shim = host.shim("a", ["nonsense"])
    with pytest.raises(CallError, match=r"OCI runtime create failed: .*nonsense"):
        shim.create(options=runtime)
        shim.start()


def test_replacement_works_for_foreign_runtimes_too(host: Host, runtime: Any) -> None:
    shim = host.shim("a", ["sh", "-c", "read x; echo $x; exit 8"])
    shim.create(stdin=f"attach://{shim.attach_path}", options=runtime)
    shim.start()
    shim.kill_shim()
    shim.restore()
    with shim.attach(stdin=True) as peer:
        peer.sendall(b"word\n")
        assert shim.wait() == 8
    assert shim.output() == b"word\n"
    shim.delete()


def test_a_runtime_that_is_not_there_is_named(host: Host) -> None:
    shim = host.shim("a", ["true"])
    value = RUNC_OPTIONS.encode({"binary_name": "no-such-runtime"})
    with pytest.raises(CallError, match="'no-such-runtime' is not installed"):
        shim.create(options={"type_url": RUNC_OPTIONS.name, "value": value})
