"""An init that waits for its container: used where it suits, gone where it does not, and with whoever made it."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest

from runc_py import state
from runc_py.cgroups import layout
from runc_py.errors import RuntimeFailure
from runc_py.waiting import WaitingInit
from tests.integration.runc_py.conftest import Ahead, Bundle

pytestmark = pytest.mark.root

v1_only = pytest.mark.skipif(layout.current().unified != "", reason="on v2 an init is born in its cgroup")


@pytest.fixture
def runtime(bundle: Bundle) -> Ahead:
    """The bundle's runtime."""
    bundle.runtime = ahead = Ahead(bundle.runtime.root)
    return ahead


def gone(pid: int) -> bool:
    found = state.process_status(pid)
    return found is None or found[0] in "ZX"


@v1_only
def test_it_is_process_1_of_the_usual_container(bundle: Bundle, runtime: Ahead) -> None:
    assert bundle.output("echo $$").split() == ["1"]
    assert runtime.used


@v1_only
def test_a_network_namespace_is_joined_and_a_terminal_opened(bundle: Bundle, runtime: Ahead) -> None:
    bundle.linux["namespaces"] = [entry for entry in bundle.linux["namespaces"] if entry["type"] != "network"]
    bundle.linux["namespaces"].append({"type": "network", "path": "/proc/self/ns/net"})
    bundle.process["terminal"] = True
    bundle.shell("readlink /proc/self/ns/net; test -t 0 && echo terminal")
    launched = runtime.create(bundle.id, str(bundle.directory), spec=bundle.copied())
    assert runtime.used
    assert launched.console is not None
    runtime.start(bundle.id)
    text = b""
    try:
        while chunk := os.read(launched.console, 4096):
            text += chunk
    except OSError:
        pass  # EIO: the last one closed its end
    for fd in (launched.console, launched.pidfd):
        os.close(fd)
    os.waitpid(launched.pid, 0)
    assert text.decode().split() == [os.readlink("/proc/self/ns/net"), "terminal"]


@pytest.mark.parametrize("lacking", ["pid", "ipc", "uts"])
def test_one_that_does_not_suit_is_not_used(bundle: Bundle, runtime: Ahead, lacking: str) -> None:
    bundle.spec.pop("hostname")
    bundle.linux["namespaces"] = [entry for entry in bundle.linux["namespaces"] if entry["type"] != lacking]
    bundle.output("true")
    assert not runtime.used


def test_a_task_that_is_too_long_goes_to_a_cloned_init(bundle: Bundle, runtime: Ahead) -> None:
    bundle.process["env"] += [f"LONG{number}={'x' * 10_000}" for number in range(20)]
    assert bundle.output("echo ${#LONG19}").strip() == "10000"
    assert not runtime.used


def test_one_that_was_killed_is_not_missed(bundle: Bundle) -> None:
    bundle.runtime.waiting = waiting = WaitingInit()
    os.kill(waiting.pid, signal.SIGKILL)
    os.waitid(os.P_PID, waiting.pid, os.WEXITED | os.WNOWAIT)
    bundle.output("true")
    assert bundle.runtime.waiting is None


def test_it_ends_with_its_maker() -> None:
    reader, writer = os.pipe()
    maker = os.fork()
    if maker == 0:
        os.write(writer, str(WaitingInit().pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(maker, 0)
    pid = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    pidfd = -1
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    assert gone(pid)


@v1_only
def test_what_it_cannot_do_is_said(bundle: Bundle, runtime: Ahead) -> None:
    bundle.spec["mounts"].append({"destination": "/x", "type": "bind", "source": "/nonexistent", "options": ["bind"]})
    with pytest.raises(RuntimeFailure, match="bind /nonexistent on /x"):
        bundle.output("true")
    assert not Path(runtime.root, bundle.id).exists()
