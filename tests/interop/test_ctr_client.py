"""containerd's own client against containerd-py: import an image, run it, exec in it, watch its events."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.tasks.supervisor import OWN_RUNTIME, Supervisor, supervisor
from tests.support.host import wait_for

pytestmark = pytest.mark.skipif(shutil.which("ctr") is None, reason="needs containerd's client ctr (apt: containerd)")

RUN = ("run", "--rm", "--runtime", OWN_RUNTIME, "--env", "PATH=/bin")  # ctr gives a plain directory no PATH
IMAGE = "docker.io/library/interop:latest"


class Ctr:
    """``ctr`` inside the private host."""

    def __init__(self, daemon: Supervisor) -> None:
        self.daemon = daemon

    def command(self, *arguments: str) -> list[str]:
        return ["ctr", "--address", str(self.daemon.address), "--namespace", "ctr", *arguments]

    def run(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        return self.daemon.host.run(*self.command(*arguments), stdin=stdin)

    def check(self, *arguments: str, stdin: bytes | None = None) -> str:
        return self.daemon.host.check(*self.command(*arguments), stdin=stdin)


@pytest.fixture(scope="module")
def ctr(busybox_tar: bytes) -> Iterator[Ctr]:
    with supervisor(busybox_tar) as daemon:
        yield Ctr(daemon)


def test_version(ctr: Ctr) -> None:
    assert "Server:" in ctr.check("version")


def test_run_on_a_directory(ctr: Ctr) -> None:
    rootfs = str(ctr.daemon.lower)
    done = ctr.run(*RUN, "--rootfs", rootfs, "c1", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert "err" in done.stderr
    assert ctr.check("tasks", "list", "--quiet") == ""
    assert ctr.check("containers", "list", "--quiet") == ""


def test_standard_input_and_its_end(ctr: Ctr) -> None:
    # More than a FIFO holds: ctr forgets to pass on an end that it sees before its Create call is answered.
    lines = b"line\n" * 100_000
    done = ctr.run(*RUN, "--rootfs", str(ctr.daemon.lower), "c2", "cat", stdin=lines)
    assert done.returncode == 0
    assert done.stdout.encode() == lines


def test_detached_exec_kill_and_events(ctr: Ctr, tmp_path: Path) -> None:
    events = tmp_path / "events"
    with events.open("wb") as sink:
        watcher = ctr.daemon.host.popen(*ctr.command("events"), stdout=sink)
        wait_for(lambda: ctr.check("namespaces", "label", "ctr", "seen=1") or events.read_text(), "the first event")
        rootfs = str(ctr.daemon.lower)
        ctr.check("run", "--detach", *RUN[2:], "--rootfs", rootfs, "c3", "sleep", "100")
        assert "RUNNING" in ctr.check("tasks", "list")
        assert ctr.check("tasks", "exec", "--exec-id", "e1", "c3", "echo", "inside") == "inside\n"
        assert ctr.run("tasks", "exec", "--exec-id", "e2", "c3", "sh", "-c", "exit 5").returncode == 5
        assert len(ctr.check("tasks", "ps", "c3").splitlines()) == 2
        ctr.check("tasks", "pause", "c3")
        assert "PAUSED" in ctr.check("tasks", "list")
        ctr.check("tasks", "resume", "c3")
        assert "c3" in ctr.check("tasks", "metrics", "c3")
        ctr.check("tasks", "kill", "--signal", "SIGKILL", "c3")
        wait_for(lambda: "STOPPED" in ctr.check("tasks", "list"), "the end of c3")
        assert "exit code 137" in ctr.run("tasks", "delete", "c3").stderr
        ctr.check("containers", "delete", "c3")
        wait_for(lambda: "/tasks/delete" in events.read_text(), "the delete event")
        for inner in ctr.daemon.host.pids_of("ctr", "events"):
            ctr.daemon.kill(inner)
        watcher.wait(10)
    seen = [word for line in events.read_text().splitlines() for word in line.split() if word.startswith("/")]
    order = ["/containers/create", "/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started"]
    for topic in (*order, "/tasks/paused", "/tasks/resumed", "/tasks/exit", "/tasks/delete"):
        assert topic in seen
    positions = [seen.index(topic) for topic in order]
    assert positions == sorted(positions)


def test_image_from_an_archive(ctr: Ctr, image_archive: Path) -> None:
    assert IMAGE in ctr.check("images", "import", str(image_archive))
    done = ctr.run(*RUN, IMAGE, "c4", "sh", "-c", "echo x > /written; cat /written; exit 3")
    assert (done.returncode, done.stdout) == (3, "x\n")
    assert ctr.run(*RUN, IMAGE, "c5", "cat", "/written").returncode == 1, "each container has its own snapshot"
    ctr.check("images", "remove", "--sync", IMAGE)
    assert ctr.check("images", "list", "--quiet") == ""


def test_images_are_tagged_checked_exported_and_come_back(ctr: Ctr, image_archive: Path) -> None:
    archive = str(ctr.daemon.host.base / "exported.tar")
    ctr.check("images", "import", str(image_archive))
    ctr.check("images", "tag", IMAGE, "docker.io/library/two:1")
    assert "complete (2/2)" in ctr.check("images", "check")
    ctr.check("images", "label", IMAGE, "k=v")
    assert "k=v" in ctr.check("images", "list", f"name=={IMAGE}")
    ctr.check("images", "export", archive, IMAGE)
    ctr.check("images", "remove", "--sync", IMAGE)
    assert ctr.run(*RUN, "docker.io/library/two:1", "i1", "true").returncode == 0
    ctr.check("images", "remove", "--sync", "docker.io/library/two:1")
    assert ctr.check("content", "list", "--quiet") == ""
    assert len(ctr.check("snapshots", "list").splitlines()) == 1, "the heading"
    assert IMAGE in ctr.check("images", "import", archive)
    assert ctr.run(*RUN, IMAGE, "i2", "true").returncode == 0
    ctr.check("images", "remove", "--sync", IMAGE)


def test_content_by_hand(ctr: Ctr) -> None:
    data = b"some content\n" * 1000
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    ctr.check("leases", "create", "--id", "held")
    ctr.check("content", "ingest", "--expected-digest", digest, "--expected-size", str(len(data)), "ref", stdin=data)
    ctr.check("content", "label", digest, "containerd.io/gc.root=yes")
    assert ctr.check("content", "get", digest).encode() == data
    assert "gc.root" in ctr.check("content", "list")
    assert ctr.run("content", "ingest", "--expected-digest", "sha256:" + "0" * 64, "bad", stdin=data).returncode != 0
    assert "bad" in ctr.check("content", "active"), "what arrived is kept for another attempt"
    ctr.check("content", "delete", digest)
    assert "not found" in ctr.run("content", "get", digest).stderr
    assert "held" in ctr.check("leases", "list")
    ctr.check("leases", "delete", "--sync", "held")
    assert "held" not in ctr.check("leases", "list")


def test_namespaces_and_plugins(ctr: Ctr) -> None:
    ctr.check("namespaces", "create", "other", "k=v")
    ctr.check("namespaces", "label", "other", "x=y")
    assert "k=v,x=y" in ctr.check("namespaces", "list")
    ctr.check("namespaces", "remove", "other")
    assert "other" not in ctr.check("namespaces", "list")
    plugins = ctr.check("plugins", "list")
    assert "overlayfs" in plugins and "io.containerd.runtime.v2" in plugins


def test_everything_is_there_after_a_restart(ctr: Ctr, image_archive: Path) -> None:
    ctr.check("images", "import", str(image_archive))
    ctr.check("run", "--detach", *RUN[2:], IMAGE, "r1", "sleep", "100")
    ctr.check("containers", "label", "r1", "k=v")
    before = [ctr.check(*what) for what in (("images", "list"), ("snapshots", "list"), ("tasks", "list"))]
    ctr.daemon.kill(ctr.daemon.daemon_pid())
    assert ctr.daemon.process is not None
    ctr.daemon.process.wait(10)
    ctr.daemon.start()
    assert [ctr.check(*what) for what in (("images", "list"), ("snapshots", "list"), ("tasks", "list"))] == before
    assert '"k": "v"' in ctr.check("containers", "info", "r1")
    assert ctr.check("tasks", "exec", "--exec-id", "e", "r1", "echo", "on") == "on\n"
    ctr.check("tasks", "kill", "--signal", "SIGKILL", "r1")
    wait_for(lambda: "STOPPED" in ctr.check("tasks", "list"), "the end of r1")
    ctr.run("tasks", "delete", "r1")
    ctr.check("containers", "delete", "r1")
    ctr.check("images", "remove", "--sync", IMAGE)
    assert ctr.check("content", "list", "--quiet") == ""


@pytest.fixture(scope="module")
def image_archive(ctr: Ctr, busybox_tar: bytes) -> Path:
    """A docker archive of one layer."""
    digest = hashlib.sha256(busybox_tar).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": ["interop:latest"], "Layers": [f"{digest}/layer.tar"]}]
    path = ctr.daemon.host.base / "image.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (
            (config_name, config),
            (f"{digest}/layer.tar", busybox_tar),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path
