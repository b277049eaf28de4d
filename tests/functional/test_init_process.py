"""``--init``: with the host's docker-init, and with runc-py's own where the host has none; both do the same."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for

PROGRAMS = ("docker-init", "tini-static", "tini")


def hide_programs(engine: Engine) -> None:
    """No program of the host can be process 1 any more."""
    for name in PROGRAMS:
        path = engine.host.run("which", name).stdout.strip()
        while path:
            engine.host.check("mount", "--bind", "/dev/null", path)
            path = engine.host.run("which", name).stdout.strip()


@pytest.fixture(scope="module", params=["own", "host"])
def house(make_engine: Callable[..., Engine], request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = make_engine()
    if request.param == "own":
        hide_programs(engine)
    elif not any(engine.host.run("which", name).stdout for name in PROGRAMS):
        pytest.skip("this machine has no docker-init or tini")
    yield engine
    for line in engine.host.mounts():
        if line.endswith(PROGRAMS):
            engine.host.check("umount", line)


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("exec true", 0)],
)
def test_it_ends_as_the_program_ended(house: Engine, script: str, status: int) -> None:
    assert house.docker("run", "--rm", "--init", "busybox", "sh", "-c", script, check=False).returncode == status


def test_it_is_process_1_and_shows_nothing_of_the_host(house: Engine) -> None:
    shown = house.docker("run", "--rm", "--init", "busybox", "ps", "-o", "pid,comm,args").stdout.splitlines()
    assert shown[1].split()[:2] == ["1", "docker-init"]
    assert shown[1].split()[2:] == ["/sbin/docker-init", "--", "ps", "-o", "pid,comm,args"]
    assert shown[2].split()[1] == "ps"
    assert len(shown) == 3
    environment = house.docker("run", "--rm", "--init", "--privileged", "busybox", "cat", "/proc/1/environ").stdout
    assert str(house.host.base) not in environment


def test_orphans_are_reaped(house: Engine) -> None:
    script = "(sleep 0.1 & exec true) & wait; while pgrep sleep; do sleep 0.05; done; sleep 0.2; ps -o stat,comm"
    shown = house.docker("run", "--rm", "--init", "busybox", "sh", "-c", script).stdout
    assert "docker-init" in shown
    assert not [line for line in shown.splitlines() if line.startswith("Z")], shown


def test_signals_are_handed_on(house: Engine) -> None:
    script = "trap 'echo got usr1' USR1; trap 'echo got term; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    name = house.docker("run", "-d", "--init", "busybox", "sh", "-c", script).stdout.strip()
    wait_for(lambda: "ready" in house.docker("logs", name).stdout, "the traps")
    house.docker("kill", "--signal", "USR1", name)
    wait_for(lambda: "got usr1" in house.docker("logs", name).stdout, "the signal")
    house.docker("stop", name)
    assert house.docker("wait", name).stdout == "5\n"
    house.docker("rm", name)


def test_a_program_that_ignores_signals_is_killed(house: Engine) -> None:
    name = house.docker("run", "-d", "--init", "busybox", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    ident = name.stdout.strip()
    house.docker("stop", "-t", "0", ident)
    assert house.docker("wait", ident).stdout == "137\n"
    house.docker("rm", ident)


def test_the_terminal_is_the_programs(house: Engine) -> None:
    script = "trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    name = house.docker("create", "-ti", "--init", "busybox", "sh", "-c", script).stdout.strip()
    client = house.popen("start", "-ai", name, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert client.stdin is not None
    wait_for(lambda: "ready" in house.docker("logs", name).stdout, "the trap")
    client.stdin.write(b"\x03")
    client.stdin.flush()
    assert house.docker("wait", name).stdout == "7\n"
    client.communicate(timeout=20)
    house.docker("rm", name)


def test_a_command_that_is_not_there(house: Engine) -> None:
    done = house.docker("run", "--rm", "--init", "busybox", "/no/such/program", check=False)
    assert done.returncode == 127
    assert "/no/such/program" in done.stderr


def test_memory_of_a_limited_container_is_the_programs(house: Engine) -> None:
    done = house.docker("run", "--rm", "--init", "--memory", "6m", "busybox", "echo", "enough")
    assert done.stdout == "enough\n"
