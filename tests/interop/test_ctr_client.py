"""containerd's own clients against containerd-py: every command they have for images, snapshots, tasks and events.

Rule: the client of the release here (1.6) and the newer one (1.7, where it was fetched) are given the same work.
"""

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
from tests.support.newer import MISSING, newer_program
from tests.support.registry import running_registry

pytestmark = pytest.mark.skipif(shutil.which("ctr") is None, reason="needs containerd's client ctr (apt: containerd)")
NEWER = newer_program("usr/bin/ctr")

RUN = ("run", "--rm", "--runtime", OWN_RUNTIME, "--env", "PATH=/bin")  # ctr gives a plain directory no PATH
IMAGE = "docker.io/library/interop:latest"


class Ctr:
    """``ctr`` inside the private host."""

    def __init__(self, daemon: Supervisor, program: str) -> None:
        self.daemon = daemon
        self.program = program

    def command(self, *arguments: str) -> list[str]:
        return [self.program, "--address", str(self.daemon.address), "--namespace", "ctr", *arguments]

    def run(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        return self.daemon.host.run(*self.command(*arguments), stdin=stdin)

    def check(self, *arguments: str, stdin: bytes | None = None) -> str:
        return self.daemon.host.check(*self.command(*arguments), stdin=stdin)


def keep(ctr: Ctr, make: tuple[str, ...], label: tuple[str, ...], stdin: bytes | None = None) -> None:
    """Make an object and hold it by a label: until then it is nobody's, and a collection may come between the two."""

    def held() -> bool:
        ctr.run(*make, stdin=stdin)
        return ctr.run(*label, "containerd.io/gc.root=yes").returncode == 0

    wait_for(held, f"what {make} makes")


@pytest.fixture(
    scope="module",
    params=["ctr", pytest.param(NEWER, marks=pytest.mark.skipif(NEWER is None, reason=MISSING))],
    ids=["installed", "1.7"],
)
def ctr(request: pytest.FixtureRequest, busybox_tar: bytes) -> Iterator[Ctr]:
    with supervisor(busybox_tar) as daemon:
        yield Ctr(daemon, request.param)


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


def test_a_terminal(ctr: Ctr) -> None:
    """``ctr run -t`` wants a terminal itself: util-linux's script gives it one."""
    inner = ctr.command("run", "-t", *RUN[1:], "--rootfs", str(ctr.daemon.lower), "tty", "sh", "-c", "'tty; exit 5'")
    done = ctr.daemon.host.run("script", "-qec", " ".join(inner), "/dev/null")
    assert done.returncode == 5, done.stdout
    assert "/dev/" in done.stdout and "not a tty" not in done.stdout
    inner = ctr.command("run", "-d", "-t", *RUN[2:], "--rootfs", str(ctr.daemon.lower), "tty2", "cat")
    assert ctr.daemon.host.run("script", "-qec", " ".join(inner), "/dev/null").returncode == 0
    assert "RUNNING" in ctr.check("tasks", "list")
    ctr.check("tasks", "delete", "--force", "tty2")
    ctr.check("containers", "delete", "tty2")


def test_a_checkpoint_is_made_or_criu_says_why_not(ctr: Ctr) -> None:
    """``ctr`` pauses the task for it, and lets it go on whatever came of it."""
    ctr.check("run", "--detach", *RUN[2:], "--rootfs", str(ctr.daemon.lower), "k1", "sleep", "100")
    done = ctr.run("tasks", "checkpoint", "k1")
    if done.returncode:
        assert "criu" in done.stderr
        assert ctr.check("content", "list", "--quiet") == ""
    else:
        assert "k1" in ctr.check("images", "list", "--quiet")
    assert "RUNNING" in ctr.check("tasks", "list")
    ctr.check("tasks", "delete", "--force", "k1")
    ctr.check("containers", "delete", "k1")
    for name in ctr.check("images", "list", "--quiet").split():
        ctr.check("images", "remove", "--sync", name)


def test_containers_by_hand(ctr: Ctr) -> None:
    rootfs = str(ctr.daemon.lower)
    ctr.check("containers", "create", "--runtime", OWN_RUNTIME, "--env", "PATH=/bin", "--rootfs", rootfs, "h1", "id")
    assert "h1" in ctr.check("containers", "list")
    assert json.loads(ctr.check("containers", "info", "h1"))["Runtime"]["Name"] == OWN_RUNTIME
    assert ctr.check("containers", "label", "h1", "k=v").strip() == "k=v"
    assert ctr.check("containers", "list", "--quiet", "labels.k==v").split() == ["h1"]
    assert "uid=0" in ctr.check("tasks", "start", "h1")
    assert ctr.check("tasks", "list", "--quiet") == "", "start deletes the task that it waited for"
    ctr.check("containers", "delete", "h1")
    assert "not found" in ctr.run("containers", "info", "h1").stderr


def test_images_go_to_a_registry_and_come_back(ctr: Ctr, image_archive: Path) -> None:
    with running_registry(ctr.daemon.host.base / "registry", host=ctr.daemon.host) as registry:
        name = f"{registry}/interop:1"
        ctr.check("images", "import", str(image_archive))
        ctr.check("images", "tag", IMAGE, name)
        ctr.check("images", "push", "--plain-http", name)
        digests = set(ctr.check("content", "list", "--quiet").split())
        ctr.check("images", "remove", "--sync", IMAGE, name)
        assert ctr.check("content", "list", "--quiet") == ""
        ctr.check("images", "pull", "--plain-http", name)
        assert set(ctr.check("content", "list", "--quiet").split()) <= digests
        assert ctr.run(*RUN, name, "p1", "sh", "-c", "exit 6").returncode == 6
        ctr.check("content", "fetch", "--plain-http", name)
        assert "not found" in ctr.run("images", "pull", "--plain-http", f"{registry}/interop:none").stderr
        ctr.check("images", "remove", "--sync", name)


def test_snapshots_by_hand(ctr: Ctr, image_archive: Path) -> None:
    ctr.check("images", "import", str(image_archive))
    heading, layer = ctr.check("snapshots", "list").splitlines()
    assert heading.split() == ["KEY", "PARENT", "KIND"] and layer.split()[1] == "Committed"
    parent = layer.split()[0]
    ctr.check("snapshots", "prepare", "work", parent)
    keep(ctr, ("snapshots", "view", "look", parent), ("snapshots", "label", "look"))
    assert ctr.check("snapshots", "tree").split() == [parent, "\\_", "look", "\\_", "work"]
    assert json.loads(ctr.check("snapshots", "info", "work"))["Parent"] == parent
    ctr.check("snapshots", "label", "work", "k=v")
    target = ctr.daemon.host.base / "mounted"
    target.mkdir()
    command = ctr.check("snapshots", "mounts", str(target), "work").strip()
    assert command.startswith("mount -t overlay")
    ctr.daemon.host.check(*command.split())
    ctr.daemon.host.check("sh", "-c", f"echo new >{target}/new && umount {target}")
    sizes = {line.split()[0]: line.split()[1:] for line in ctr.check("snapshots", "usage").splitlines()[1:]}
    assert set(sizes) == {parent, "work", "look"}
    assert sizes["work"] != sizes["look"], "the new file counts"
    assert ctr.daemon.host.run(*ctr.command("snapshots", "diff", "work")).returncode == 0
    ctr.check("snapshots", "commit", "done", "work")
    assert "Committed" in next(line for line in ctr.check("snapshots", "list").splitlines() if line.startswith("done"))
    ctr.check("snapshots", "remove", "look")
    ctr.check("snapshots", "remove", "done")
    ctr.check("images", "remove", "--sync", IMAGE)
    assert len(ctr.check("snapshots", "list").splitlines()) == 1, "the heading"


def test_prune(ctr: Ctr, image_archive: Path) -> None:
    """Layers are forgotten once they are unpacked; the image still runs, and what no image names goes."""
    ctr.check("images", "import", str(image_archive))
    layer = ctr.check("snapshots", "list").splitlines()[1].split()[0]
    assert layer in ctr.check("content", "list", "--quiet").split()
    ctr.check("content", "prune", "references")
    wait_for(lambda: layer not in ctr.check("content", "list", "--quiet").split(), "the layer to go")
    assert ctr.run(*RUN, IMAGE, "u1", "true").returncode == 0
    if ctr.program == NEWER:
        ctr.check("images", "prune", "--all")
        assert ctr.check("images", "list", "--quiet") == ""
    else:
        ctr.check("images", "remove", "--sync", IMAGE)
    wait_for(lambda: ctr.check("content", "list", "--quiet") == "", "the rest to go")


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
    expected = ("--expected-digest", digest, "--expected-size", str(len(data)))
    keep(ctr, ("content", "ingest", *expected, "ref"), ("content", "label", digest), stdin=data)
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
