"""The container commands that are not in the other files, with the real client."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for


@pytest.fixture
def sleeper(engine: Engine) -> Iterator[str]:
    """A sleeping container called ``box``."""
    yield engine.docker("run", "-d", "--name", "box", "--label", "k=v", "busybox", "sleep", "1000").stdout.strip()
    engine.docker("rm", "-f", "box", "boxer", check=False)


def field(engine: Engine, name: str, template: str) -> str:
    return engine.docker("inspect", "-f", template, name).stdout.strip()


def test_restart_and_start_again(engine: Engine, sleeper: str) -> None:
    pid = field(engine, "box", "{{.State.Pid}}")
    engine.docker("restart", "-t", "0", "box")
    assert field(engine, "box", "{{.State.Status}}") == "running"
    assert field(engine, "box", "{{.State.Pid}}") != pid
    engine.docker("stop", "-t", "0", "box")
    engine.docker("stop", "box")
    engine.docker("start", "box")
    engine.docker("start", "box")
    assert engine.api("POST", "/containers/box/start")[0] == 304


def test_restart_spares_what_removes_itself(engine: Engine) -> None:
    engine.docker("run", "-d", "--rm", "--name", "brief", "busybox", "sleep", "1000")
    engine.docker("restart", "-t", "0", "brief")
    time.sleep(0.5)
    assert field(engine, "brief", "{{.State.Status}}") == "running"
    engine.docker("kill", "brief")
    wait_for(lambda: engine.docker("inspect", "brief", check=False).returncode == 1, "auto-remove")


def test_rename_frees_the_old_name(engine: Engine, sleeper: str) -> None:
    engine.docker("rename", "box", "boxer")
    assert field(engine, "boxer", "{{.Name}}") == "/boxer"
    assert engine.docker("inspect", "box", check=False).returncode == 1
    engine.docker("create", "--name", "box", "busybox", "true")
    refused = engine.docker("rename", "box", "boxer", check=False)
    assert 'The container name "/boxer" is already in use' in refused.stderr


def test_update_changes_the_cgroup(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "small", "-m", "64m", "busybox", "sleep", "1000")
    engine.docker("update", "-m", "96m", "--memory-swap", "192m", "small")
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"
    assert engine.docker("exec", "small", "sh", "-c", script).stdout == f"{96 << 20}\n"
    assert field(engine, "small", "{{.HostConfig.Memory}}") == str(96 << 20)
    engine.docker("rm", "-f", "small")


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ("name=^/box$", True), ("name=nothing", False), ("label=k", True), ("label=k=v", True), ("label=k=w", False),
        ("status=running", True), ("status=exited", False), ("ancestor=busybox", True), ("ancestor=other", False),
        ("network=bridge", True), ("network=none", False), ("health=none", True), ("id=0x", False), ("exited=0", False),
    ],
)  # fmt: skip
def test_ps_filters(engine: Engine, sleeper: str, filter: str, found: bool) -> None:
    assert (engine.docker("ps", "-q", "--no-trunc", "--filter", filter).stdout.strip() == sleeper) is found


def test_ps_by_age_limit_and_size(engine: Engine, sleeper: str) -> None:
    engine.docker("create", "--name", "younger", "busybox", "true")
    assert engine.docker("ps", "-aq", "--filter", "before=younger", "--no-trunc").stdout.strip() == sleeper
    younger = field(engine, "younger", "{{.Id}}")
    assert engine.docker("ps", "-aq", "--filter", "since=box", "--no-trunc").stdout.strip() == younger
    assert engine.docker("ps", "-lq", "--no-trunc").stdout.strip() == younger
    assert "virtual" in engine.docker("ps", "-s", "--format", "{{.Size}}").stdout
    engine.docker("rm", "younger")
    assert engine.api("GET", "/containers/json?filters=%7B%22bogus%22%3A%5B%22x%22%5D%7D")[0] == 400


def test_prune_spares_what_runs(engine: Engine, sleeper: str) -> None:
    engine.docker("run", "--name", "ended", "busybox", "true")
    assert "Deleted Containers" in engine.docker("container", "prune", "-f").stdout
    assert engine.docker("ps", "-aq", "--no-trunc").stdout.split() == [sleeper]


def test_restart_policy_counts_and_gives_up(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "fails", "--restart", "on-failure:2", "busybox", "sh", "-c", "echo x; exit 3")
    wait_for(lambda: field(engine, "fails", "{{.State.Status}}") == "exited", "the policy to give up")
    assert field(engine, "fails", "{{.RestartCount}} {{.State.ExitCode}}") == "2 3"
    assert engine.docker("logs", "fails").stdout == "x\n" * 3
    engine.docker("rm", "fails")


def test_restart_always_ends_at_stop(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "always", "--restart", "always", "busybox", "false")
    wait_for(lambda: int(field(engine, "always", "{{.RestartCount}}")) >= 2, "restarts")
    engine.docker("stop", "always")
    time.sleep(0.5)
    assert field(engine, "always", "{{.State.Status}}") == "exited"
    engine.docker("rm", "always")


def test_volumes_are_filled_shared_and_removed(engine: Engine) -> None:
    engine.docker("run", "--name", "first", "-v", "data:/www", "-v", "/anonymous", "busybox", "touch", "/www/new")
    listed = engine.docker("run", "--rm", "--volumes-from", "first", "busybox", "ls", "/www").stdout
    assert listed == "index.html\nnew\n"
    assert len(engine.docker("volume", "ls", "-q").stdout.split()) == 2
    engine.docker("rm", "-v", "first")
    assert engine.docker("volume", "ls", "-q").stdout.split() == ["data"]
    engine.docker("volume", "rm", "data")


def test_namespaces_of_another_container(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "donor", "--ipc", "shareable", "busybox", "sleep", "1000")
    engine.docker("exec", "donor", "touch", "/dev/shm/seen")
    flags = [f"--{kind}=container:donor" for kind in ("network", "pid", "ipc")]
    done = engine.docker("run", "--rm", *flags, "busybox", "sh", "-c", "ps; ls /dev/shm; hostname -i")
    assert "sleep 1000" in done.stdout
    assert "seen" in done.stdout
    engine.docker("rm", "-f", "donor")
    refused = engine.docker("run", "--rm", "--pid=container:donor", "busybox", "true", check=False)
    assert refused.returncode == 125


def test_out_of_memory_is_told(engine: Engine) -> None:
    done = engine.docker("run", "--name", "greedy", "-m", "10m", "busybox", "tail", "/dev/zero", check=False)
    assert done.returncode == 137
    assert field(engine, "greedy", "{{.State.OOMKilled}}") == "true"
    engine.docker("rm", "greedy")


def test_start_attached_and_attach_with_stdin(engine: Engine) -> None:
    engine.docker("create", "--name", "reader", "-i", "busybox", "sh", "-c", "cat; exit 4")
    done = engine.docker("start", "-ai", "reader", stdin=b"typed\n", check=False)
    assert (done.stdout, done.returncode) == ("typed\n", 4)
    engine.docker("rm", "reader")


def test_two_clients_see_the_same(engine: Engine) -> None:
    script = "sleep 1; seq 1 1000; exit 2"
    engine.docker("run", "-d", "--name", "shown", "busybox", "sh", "-c", script)
    clients = [engine.popen("attach", "--no-stdin", "shown", stdout=subprocess.PIPE) for _ in range(2)]
    expected = "".join(f"{n}\n" for n in range(1, 1001)).encode()
    for client in clients:
        out, _ = client.communicate(timeout=30)
        assert (out, client.returncode) == (expected, 2)
    engine.docker("rm", "shown")


def test_inspect_has_dockers_keys(engine: Engine, sleeper: str) -> None:
    found = json.loads(engine.docker("inspect", "-s", "box").stdout)[0]
    wanted = (
        "Id Created Path Args State Image ResolvConfPath HostnamePath HostsPath LogPath Name RestartCount Driver "
        "Platform MountLabel ProcessLabel AppArmorProfile ExecIDs HostConfig GraphDriver Mounts Config NetworkSettings "
        "SizeRw SizeRootFs"
    )
    assert set(wanted.split()) <= set(found)
    assert found["Config"]["Hostname"] == sleeper[:12]
    assert found["State"]["StartedAt"].endswith("Z")


def test_fifty_runs_leave_nothing(engine: Engine) -> None:
    def left() -> dict[str, Any]:
        # By command lines: the zygote keeps a child in reserve, which is another one after each run.
        found = engine.host.leftovers()
        return {**found, "processes": set(found["processes"].values())}

    engine.docker("run", "--rm", "busybox", "true")
    before = left()
    for _ in range(50):
        engine.docker("run", "--rm", "busybox", "true")
    with contextlib.suppress(AssertionError):
        wait_for(lambda: left() == before, "what they were to go")
    assert left() == before
