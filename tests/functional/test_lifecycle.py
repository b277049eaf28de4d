"""Start, stop, kill, exec, logs, inspect and rm with the real client."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for


@pytest.fixture
def sleeper(engine: Engine) -> Iterator[str]:
    """A container that sleeps and does not mind signals' defaults; its full id."""
    yield (ident := engine.docker("run", "-d", "--name", "sleeper", "busybox", "sleep", "1000").stdout.strip())
    engine.docker("rm", "-f", ident, check=False)


def state(engine: Engine, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(engine.docker("inspect", name).stdout)[0]["State"]
    return found


def test_exec_output_status_stdin_user(engine: Engine, sleeper: str) -> None:
    assert engine.docker("exec", "sleeper", "echo", "in").stdout == "in\n"
    assert engine.docker("exec", "sleeper", "sh", "-c", "exit 9", check=False).returncode == 9
    assert engine.docker("exec", "-i", "sleeper", "cat", stdin=b"fed\n").stdout == "fed\n"
    assert engine.docker(
        "exec", "-u", "1:1", "-w", "/tmp", "-e", "K=v", "sleeper", "sh", "-c", "echo $(id -u) $PWD $K"
    ).stdout == ("1 /tmp v\n")
    assert engine.docker("exec", "sleeper", "nosuch", check=False).returncode in (126, 127)


def test_exec_with_a_terminal(engine: Engine, sleeper: str) -> None:
    line = engine.docker("exec", "-t", "sleeper", "sh", "-c", "tty; echo done").stdout
    assert line == "/dev/pts/0\r\ndone\r\n"


def test_stop_sends_term_then_kill(engine: Engine) -> None:
    script = "trap 'echo got term' TERM; echo ready; while :; do sleep 0.1; done"
    ident = engine.docker("run", "-d", "busybox", "sh", "-c", script).stdout.strip()
    wait_for(lambda: "ready" in engine.docker("logs", ident).stdout, "the trap")
    began = time.monotonic()
    engine.docker("stop", "-t", "1", ident)
    assert 0.9 < time.monotonic() - began < 10
    assert "got term" in engine.docker("logs", ident).stdout
    assert state(engine, ident)["ExitCode"] == 137
    engine.docker("rm", ident)


def test_stop_of_a_polite_program_is_quick(engine: Engine) -> None:
    script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    ident = engine.docker("run", "-d", "busybox", "sh", "-c", script).stdout.strip()
    wait_for(lambda: "ready" in engine.docker("logs", ident).stdout, "the trap")
    engine.docker("stop", ident)
    assert state(engine, ident)["ExitCode"] == 5
    assert engine.docker("start", ident).stdout.strip() == ident
    wait_for(lambda: engine.docker("logs", ident).stdout.count("ready") == 2, "the second run's output")
    engine.docker("rm", "-f", ident)


def test_kill_with_a_signal(engine: Engine, sleeper: str) -> None:
    engine.docker("kill", "-s", "KILL", "sleeper")
    wait_for(lambda: state(engine, "sleeper")["Status"] == "exited", "the kill")
    assert state(engine, "sleeper")["ExitCode"] == 137
    again = engine.docker("kill", "sleeper", check=False)
    assert again.returncode == 1
    assert "is not running" in again.stderr


def test_logs_follow_tail_since(engine: Engine) -> None:
    script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done"
    ident = engine.docker("run", "-d", "busybox", "sh", "-c", script).stdout.strip()
    followed = engine.docker("logs", "-f", ident).stdout
    assert followed == "".join(f"line {n}\n" for n in range(1, 6))
    assert engine.docker("logs", "--tail", "2", ident).stdout == "line 4\nline 5\n"
    stamped = engine.docker("logs", "-t", ident).stdout.splitlines()
    first_of_last = stamped[3].split()[0]
    assert engine.docker("logs", "--since", first_of_last, ident).stdout == "line 4\nline 5\n"
    engine.docker("rm", ident)


def test_wait_gives_the_status(engine: Engine) -> None:
    ident = engine.docker("run", "-d", "busybox", "sh", "-c", "sleep 0.3; exit 4").stdout.strip()
    assert engine.docker("wait", ident).stdout == "4\n"
    engine.docker("rm", ident)


def test_remove_running_needs_force(engine: Engine, sleeper: str) -> None:
    refused = engine.docker("rm", "sleeper", check=False)
    assert refused.returncode == 1
    assert "container is running" in refused.stderr
    engine.docker("rm", "-f", "sleeper")
    gone = engine.docker("inspect", "sleeper", check=False)
    assert gone.returncode == 1


def test_duplicate_name_is_a_conflict(engine: Engine, sleeper: str) -> None:
    done = engine.docker("create", "--name", "sleeper", "busybox", "true", check=False)
    assert done.returncode == 1
    assert f'The container name "/sleeper" is already in use by container "{sleeper}"' in done.stderr
    status, _ = engine.api("POST", "/containers/create?name=sleeper", {"Image": "busybox"})
    assert status == 409


def test_ps_and_inspect_describe_it(engine: Engine, sleeper: str) -> None:
    row = engine.docker("ps", "--no-trunc", "--format", "{{.ID}} {{.Image}} {{.Names}} {{.Command}}").stdout.strip()
    assert row == f'{sleeper} busybox sleeper "sleep 1000"'
    found = json.loads(engine.docker("inspect", "sleeper").stdout)[0]
    assert (found["Id"], found["Name"], found["Path"], found["Args"]) == (sleeper, "/sleeper", "sleep", ["1000"])
    assert found["State"]["Running"] is True
    assert found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]


def test_containers_reach_each_other(engine: Engine, sleeper: str) -> None:
    address = engine.docker("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "sleeper").stdout.strip()
    assert "1 packets received" in engine.docker("run", "--rm", "busybox", "ping", "-c", "1", "-W", "5", address).stdout


@pytest.mark.parametrize(("network", "links"), [("none", "lo"), ("host", "docker0|gantry0")])
def test_network_modes(engine: Engine, network: str, links: str) -> None:
    listed = engine.docker(
        "run", "--rm", "--network", network, "busybox", "ls", "/proc/sys/net/ipv4/conf"
    ).stdout.split()
    if network == "none":
        assert set(listed) <= {"all", "default", "lo"}
    else:
        assert set(listed) & set(links.split("|"))


def test_pause_stops_the_clock(engine: Engine) -> None:
    ident = engine.docker("run", "-d", "busybox", "sh", "-c", "while :; do echo tick; sleep 0.05; done").stdout.strip()
    engine.docker("pause", ident)
    assert state(engine, ident)["Status"] == "paused"
    before = engine.docker("logs", ident).stdout
    time.sleep(0.3)
    assert engine.docker("logs", ident).stdout == before
    engine.docker("unpause", ident)
    wait_for(lambda: len(engine.docker("logs", ident).stdout) > len(before), "ticks after the pause")
    engine.docker("rm", "-f", ident)


def test_attach_sees_output_and_ends_with_the_container(engine: Engine) -> None:
    ident = engine.docker("run", "-d", "busybox", "sh", "-c", "sleep 0.5; echo late; exit 6").stdout.strip()
    attached = engine.popen("attach", ident, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    out, _ = attached.communicate(timeout=20)
    assert (out, attached.returncode) == (b"late\n", 6)
    engine.docker("rm", ident)
