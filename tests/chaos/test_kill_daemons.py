"""SIGKILL to each daemon and to all of them: containers go on, no log line is lost or doubled, exits are known."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for

COUNTER = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"


@pytest.fixture
def own(make_engine: Callable[..., Engine]) -> Engine:
    """An engine that nobody else uses."""
    return make_engine()


@pytest.fixture
def counter(own: Engine) -> Iterator[str]:
    """A container that counts ten times a second; its full id."""
    yield (ident := own.docker("run", "-d", "--name", "counter", "busybox", "sh", "-c", COUNTER).stdout.strip())
    own.docker("rm", "-f", ident, check=False)


def numbers(engine: Engine, ident: str) -> list[int]:
    return [int(line) for line in engine.docker("logs", ident).stdout.split()]


def assert_counts_on(engine: Engine, ident: str) -> None:
    """The log is 1, 2, 3 … without a gap, and grows."""
    seen = numbers(engine, ident)
    assert seen == list(range(1, len(seen) + 1))
    wait_for(lambda: len(numbers(engine, ident)) > len(seen), "the count to go on")
    seen = numbers(engine, ident)
    assert seen == list(range(1, len(seen) + 1))


def status(engine: Engine, ident: str) -> str:
    return engine.docker("inspect", "-f", "{{.State.Status}}", ident).stdout.strip()


def test_engine_killed(own: Engine, counter: str) -> None:
    time.sleep(0.5)
    own.kill("engine.main")
    time.sleep(0.5)
    own.start()
    assert status(own, counter) == "running"
    assert_counts_on(own, counter)
    assert own.docker("exec", counter, "echo", "alive").stdout == "alive\n"
    own.docker("stop", "-t", "0", counter)
    assert status(own, counter) == "exited"


def test_supervisor_killed(own: Engine, counter: str) -> None:
    time.sleep(0.5)
    own.kill("containerd_py.main")
    wait_for(lambda: own.host.pids_of("containerd_py.main"), "the supervisor to be started again")
    wait_for(lambda: own.docker("run", "--rm", "busybox", "true", check=False).returncode == 0, "runs to work again")
    assert status(own, counter) == "running"
    assert_counts_on(own, counter)
    own.docker("kill", counter)
    assert own.docker("wait", counter).stdout == "137\n"


def test_shim_killed(own: Engine, counter: str) -> None:
    time.sleep(0.5)
    own.kill_shim(counter)
    time.sleep(0.5)
    assert status(own, counter) == "running"
    assert_counts_on(own, counter)
    own.docker("stop", "-t", "0", counter)
    assert own.docker("wait", counter).stdout == "137\n"


def test_all_killed(own: Engine, counter: str) -> None:
    time.sleep(0.5)
    own.kill("engine.main")
    own.kill("containerd_py.main")
    own.kill_shim(counter)
    time.sleep(0.5)
    own.start()
    assert status(own, counter) == "running"
    assert_counts_on(own, counter)
    own.docker("kill", counter)
    assert own.docker("wait", counter).stdout == "137\n"


def test_exit_while_both_daemons_are_dead(own: Engine) -> None:
    own.docker("run", "-d", "--name", "brief", "busybox", "sh", "-c", "sleep 1.5; echo last; exit 7")
    own.docker("run", "-d", "--rm", "--name", "gone", "busybox", "sleep", "1")
    own.docker("run", "-d", "--restart", "always", "--name", "again", "busybox", "sh", "-c", "sleep 1; exit 3")
    own.kill("engine.main")
    own.kill("containerd_py.main")
    time.sleep(2)
    own.start()
    assert own.docker("wait", "brief").stdout == "7\n"
    assert own.docker("logs", "brief").stdout == "last\n"
    wait_for(lambda: own.docker("inspect", "gone", check=False).returncode != 0, "auto-remove")
    wait_for(lambda: int(own.docker("inspect", "-f", "{{.RestartCount}}", "again").stdout) > 0, "the restart policy")
    finished = own.docker("inspect", "-f", "{{.State.FinishedAt}}", "brief").stdout
    assert not finished.startswith("0001")
    own.docker("rm", "-f", "brief", "again")


def test_attached_client_outlives_the_shim(own: Engine) -> None:
    script = "for i in $(seq 1 30); do echo $i; sleep 0.1; done; exit 5"
    client = own.popen("run", "--name", "seen", "busybox", "sh", "-c", script, stdout=subprocess.PIPE)
    wait_for(lambda: own.docker("logs", "seen", check=False).stdout.count("\n") > 3, "output")
    own.kill_shim(own.docker("inspect", "-f", "{{.Id}}", "seen").stdout.strip())
    out, _ = client.communicate(timeout=30)
    assert out.decode().split() == [str(n) for n in range(1, 31)]
    assert client.returncode == 5
    own.docker("rm", "seen")
