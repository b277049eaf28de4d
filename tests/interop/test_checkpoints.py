"""Checkpoints of containerd's client, made and restored by containerd-py, our shim, our runtime and the real criu."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.tasks.supervisor import OWN_RUNTIME, Supervisor, supervisor
from tests.support.host import wait_for
from tests.support.newer import MISSING, newer_program, working_criu

CRIU = working_criu()
CTR = newer_program("usr/bin/ctr") or shutil.which("ctr")
IMAGE = "docker.io/library/interop:latest"
CHECKPOINT = "docker.io/library/checkpoint:1"
COUNT = "i=0; while true; do i=$((i+1)); echo tick $i; echo $i >/count; sleep 0.1; done"

pytestmark = [
    pytest.mark.skipif(CRIU is None, reason=f"no criu works with this kernel; newer one {MISSING}"),
    pytest.mark.skipif(CTR is None, reason="needs containerd's client ctr (apt: containerd)"),
]


@pytest.fixture(scope="module")
def daemon(busybox_tar: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """A daemon that finds the criu that works, and an image of busybox."""
    assert CRIU is not None
    programs = tmp_path_factory.mktemp("programs")
    (programs / "criu").symlink_to(CRIU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        with supervisor(busybox_tar) as made:
            archive = made.host.base / "image.tar"
            write_archive(archive, busybox_tar)
            check(made, "images", "import", str(archive))
            yield made
            for name in check(made, "images", "list", "--quiet").split():
                check(made, "images", "remove", "--sync", name)


def write_archive(path: Path, layer: bytes) -> None:
    """A docker archive of one layer."""
    digest = hashlib.sha256(layer).hexdigest()
    document = {"os": "linux", "architecture": "amd64", "config": {"Env": ["PATH=/bin"]}}
    config = json.dumps({**document, "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}}).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": ["interop:latest"], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for member, data in ((name, config), ("layer.tar", layer), ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def command(daemon: Supervisor, *arguments: str) -> list[str]:
    assert CTR is not None
    return [CTR, "--address", str(daemon.address), "--namespace", "ctr", *arguments]


def check(daemon: Supervisor, *arguments: str) -> str:
    return daemon.host.check(*command(daemon, *arguments))


def counted(daemon: Supervisor, name: str) -> int:
    """How far the container has come; 0 when it cannot tell (yet)."""
    done = daemon.host.run(*command(daemon, "tasks", "exec", "--exec-id", "look", name, "cat", "/count"))
    return int(done.stdout) if done.stdout.strip().isdigit() else 0


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_a_checkpoint_becomes_another_container(daemon: Supervisor, tmp_path: Path, terminal: bool) -> None:
    first, second = (f"{name}-{'tty' if terminal else 'pipes'}" for name in ("first", "second"))
    flags = ("--tty",) if terminal else ()
    run = command(daemon, "run", "--detach", *flags, "--runtime", OWN_RUNTIME, IMAGE, first, "sh", "-c", f"'{COUNT}'")
    daemon.host.check("script", "-qec", " ".join(run), "/dev/null")  # a client of a terminal wants one itself
    wait_for(lambda: counted(daemon, first) > 3, "the first steps")
    check(daemon, "containers", "checkpoint", "--task", "--rw", first, CHECKPOINT)
    reached = counted(daemon, first)
    assert "RUNNING" in check(daemon, "tasks", "list"), "it was left running"
    check(daemon, "tasks", "delete", "--force", first)
    check(daemon, "containers", "delete", first)

    output = tmp_path / "output"
    restore = " ".join(command(daemon, "containers", "restore", "--live", "--rw", second, CHECKPOINT))
    with output.open("wb") as sink:
        client = daemon.host.popen("script", "-qec", restore, "/dev/null", stdin=subprocess.DEVNULL, stdout=sink)
        wait_for(lambda: counted(daemon, second) > reached + 3, "the restored container goes on")
        wait_for(lambda: b"tick" in output.read_bytes(), "its output comes to the client")
        ticks = [int(line.split()[1]) for line in output.read_text().splitlines() if line.startswith("tick ")]
        assert min(ticks) > 1, "it did not begin anew"
        check(daemon, "tasks", "kill", "--signal", "SIGKILL", second)
        client.wait(30)
    wait_for(lambda: "RUNNING" not in check(daemon, "tasks", "list"), "its end")
    daemon.host.run(*command(daemon, "tasks", "delete", second))  # a client with a terminal has done it
    check(daemon, "containers", "delete", second)
    check(daemon, "images", "remove", "--sync", CHECKPOINT)
