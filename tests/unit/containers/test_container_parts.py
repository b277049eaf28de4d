"""The pure parts of the container service: start errors, list filters and texts, attach's bookkeeping, copy-up."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec
import pytest

from engine.containers import restart, waiting
from engine.containers.changing import Changer
from engine.containers.config import ContainerConfig, HostConfig, RestartPolicy
from engine.containers.inspecting import config_view, host_view, mount_view, state_view
from engine.containers.launch import log_sizes, prepare_files, runtime, write_network_files
from engine.containers.listing import command_text, status_text
from engine.containers.machine import ExitStatus, Machine
from engine.containers.model import Container, MountPoint, State
from engine.containers.removal import has_label
from engine.containers.starterrors import translated_start
from engine.interfaces import SandboxFiles
from engine.store import Store
from oci.errors import FailedPrecondition, GantryError, InvalidArgument, NotFound
from protos.containerd import runc_options_pb2

SECOND = 1_000_000_000


def machine(
    state: State | None = None, config: ContainerConfig | None = None, host: HostConfig | None = None
) -> Machine:
    doc = Container(
        id="c" * 64, name="box", created_at=1, image_id="sha256:1", image_manifest=None, chain_id="sha256:2",
        snapshotter="overlayfs", platform="linux", path="sh", args=("-c", "a b"), config=config or ContainerConfig(),
        host=host or HostConfig(), state=state or State(),
    )  # fmt: skip
    return Machine(Store(":memory:"), doc)


@pytest.mark.parametrize(
    ("text", "code", "kind"),
    [
        ("OCI runtime create failed: exec: executable file not found in $PATH", 127, InvalidArgument),
        ("OCI runtime create failed: /x: no such file or directory", 127, InvalidArgument),
        ("OCI runtime create failed: /x: permission denied", 126, InvalidArgument),
        ("OCI runtime create failed: /etc: is a directory", 126, InvalidArgument),
        ("OCI runtime create failed: something else", 128, GantryError),
    ],
)
def test_start_errors_have_dockers_codes(text: str, code: int, kind: type[GantryError]) -> None:
    told, exit_code = translated_start(GantryError(text))
    assert exit_code == code
    assert isinstance(told, kind)
    assert told.message == f"failed to create task for container: failed to create shim task: {text}"


def test_other_errors_stay_as_they_are() -> None:
    error = FailedPrecondition("port is already allocated")
    assert translated_start(error) == (error, 128)
    missing = NotFound("network x not found")
    assert translated_start(missing) == (missing, 127)


def test_status_texts() -> None:
    now = time.time_ns()
    started, finished = now - 300 * SECOND, now - 120 * SECOND
    texts = {
        "Created": State(),
        "Up 5 minutes": State(status="running", started_at=started),
        "Up 5 minutes (Paused)": State(status="paused", started_at=started),
        "Exited (3) 2 minutes ago": State(status="exited", started_at=started, finished_at=finished, exit_code=3),
        "Restarting (3) 2 minutes ago": State(
            status="restarting", started_at=started, finished_at=finished, exit_code=3
        ),
        "Removal In Progress": State(status="removing"),
        "Dead": State(status="dead"),
    }
    assert {status_text(machine(state)) for state in texts.values()} == set(texts)
    healthy = machine(State(status="running", started_at=started))
    healthy.health = {"Status": "starting"}
    assert status_text(healthy) == "Up 5 minutes (health: starting)"


def test_command_and_labels() -> None:
    assert command_text(machine().doc) == "sh -c 'a b'"
    assert has_label({"k": "v"}, "k")
    assert has_label({"k": "v"}, "k=v")
    assert not has_label({"k": "v"}, "k=w")


def test_views_leave_out_what_docker_leaves_out() -> None:
    doc = machine(config=ContainerConfig(cmd=("x",), stop_signal="SIGINT")).doc
    config = config_view(doc)
    assert config["StopSignal"] == "SIGINT"
    assert not {"Healthcheck", "Shell", "StopTimeout", "ExposedPorts"} & set(config)
    assert config["Volumes"] is None
    host = host_view(doc)
    assert "/proc/kcore" in host["MaskedPaths"]
    assert not {"Tmpfs", "Mounts", "Init"} & set(host)
    assert state_view(machine())["StartedAt"] == "0001-01-01T00:00:00Z"
    assert "Health" not in state_view(machine())
    bind = MountPoint(type="bind", source="/a", destination="/b", propagation="rprivate")
    assert mount_view(bind) == {
        "Type": "bind", "Source": "/a", "Destination": "/b", "Mode": "", "RW": True, "Propagation": "rprivate",
    }  # fmt: skip


def test_runtimes() -> None:
    assert not runtime("runc-py").HasField("options")
    options = runc_options_pb2.Options.FromString(runtime("crun").options.value)
    assert options.binary_name == "crun"


def test_bound_files_keep_their_inodes(tmp_path: Path) -> None:
    doc = machine(config=ContainerConfig(hostname="named")).doc
    prepare_files(doc, str(tmp_path))
    inodes = {name: os.stat(tmp_path / name).st_ino for name in ("hostname", "hosts", "resolv.conf")}
    write_network_files(str(tmp_path), SandboxFiles("a long line of hosts\n", "r\n"))
    prepare_files(doc, str(tmp_path))
    write_network_files(str(tmp_path), SandboxFiles("h\n", "r\n"))
    assert (tmp_path / "hosts").read_text() == "h\n"
    assert (tmp_path / "hostname").read_text() == "named\n"
    assert inodes == {name: os.stat(tmp_path / name).st_ino for name in inodes}
    (tmp_path / "log" / "stdout").write_bytes(b"12345")
    assert log_sizes(str(tmp_path / "log")) == (5, 0)


def test_wait_conditions() -> None:
    async def go() -> None:
        created, running = machine(), machine(State(status="running", pid=1))
        assert waiting.waiter(created, "").result() == ExitStatus(0)
        following = waiting.waiter(created, "next-exit")
        not_running = waiting.waiter(running, "not-running")
        removed = waiting.waiter(running, "removed")
        assert not (following.done() or not_running.done() or removed.done())
        created.tell_exit(ExitStatus(4))
        running.tell_exit(ExitStatus(5))
        assert (following.result().code, not_running.result().code) == (4, 5)
        assert not removed.done()
        running.tell_removed()
        assert removed.done()
        with pytest.raises(InvalidArgument, match="invalid condition"):
            waiting.waiter(running, "sometime")

    asyncio.run(go())


def test_restart_policy_decides() -> None:
    def doc(name: str, limit: int = 0, **changes: object) -> Container:
        base = machine(host=HostConfig(restart_policy=RestartPolicy(name, limit))).doc
        return msgspec.structs.replace(base, **changes)

    assert not restart.wants_restart(doc("no"), 1)
    assert restart.wants_restart(doc("always"), 0)
    assert not restart.wants_restart(doc("always", stopped_by_user=True), 0)
    assert restart.wants_restart(doc("on-failure", 2, restart_count=1), 1)
    assert not restart.wants_restart(doc("on-failure", 2, restart_count=2), 1)
    assert not restart.wants_restart(doc("on-failure"), 0)
    assert restart.wants_start_at_boot(doc("always", ever_started=True, stopped_by_user=True))
    assert not restart.wants_start_at_boot(doc("unless-stopped", ever_started=True, stopped_by_user=True))
    assert [restart.next_pause(p, 1) for p in (0, 0.1, 59)] == [0.1, 0.2, 60.0]
    assert restart.next_pause(30, 11) == 0.1


def test_update_takes_only_what_was_given() -> None:
    host = HostConfig(memory=1 << 30, memory_swap=2 << 30, cpu_shares=7)
    changed = Changer._changed(host, HostConfig(memory=1 << 29))
    assert (changed.memory, changed.memory_swap, changed.cpu_shares) == (1 << 29, 2 << 30, 7)
    with pytest.raises(InvalidArgument, match="memoryswap"):
        Changer._changed(host, HostConfig(memory=4 << 30))
    with pytest.raises(InvalidArgument, match="AutoRemove"):
        Changer._changed(HostConfig(auto_remove=True), HostConfig(restart_policy=RestartPolicy("always")))
