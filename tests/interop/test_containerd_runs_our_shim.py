"""The distribution's own containerd runs containers with our shim, started cold by its command line."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.host import wait_for
from tests.support.images import busybox_rootfs

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "/run/containerd/test.sock"
RUNTIME = "io.containerd.py.v2"


class Containerd:
    """A real containerd in namespaces of its own; commands run beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rootfs = directory / "rootfs"
        self.rootfs.mkdir()
        subprocess.run(["tar", "-x", "-C", str(self.rootfs)], input=busybox_rootfs(), check=True)
        programs = directory / "bin"
        programs.mkdir()
        shim = programs / "containerd-shim-py-v2"
        entry = "import sys; from shim.main import main; sys.exit(main())"
        shim.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P -c '{entry}' \"$@\"\n")
        shim.chmod(0o755)
        config = directory / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{directory}/root"\nstate = "/run/containerd/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{ADDRESS}"\n'
        )
        script = "mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd && exec containerd -c $0"
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script, str(config)],
            env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
            stdout=(directory / "log").open("wb"),
            stderr=subprocess.STDOUT,
        )

    def ctr(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", "--target", str(self._process.pid), "--mount", "--net"]
        done = subprocess.run(
            [*command, "ctr", "--address", ADDRESS, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr + (self.directory / "log").read_text()
        return done

    def run(self, name: str, *command: str, detach: bool = False) -> subprocess.CompletedProcess[str]:
        flags = ["--detach"] if detach else ["--rm"]
        return self.ctr("run", *flags, "--runtime", RUNTIME, "--rootfs", str(self.rootfs), name, *command, check=False)

    def listens(self) -> bool:
        """Whether the socket is there, as the daemon's mount namespace has it."""
        return Path(f"/proc/{self._process.pid}/root{ADDRESS}").exists()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        for directory in Path("/sys/fs/cgroup").glob("*/default"):
            with contextlib.suppress(OSError):
                directory.rmdir()  # the parent of the containers' cgroups, which containerd leaves behind


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[Containerd]:
    assert shutil.which("containerd") and shutil.which("ctr"), "install containerd"
    daemon = Containerd(tmp_path)
    try:
        wait_for(daemon.listens, "containerd")
        yield daemon
    finally:
        daemon.stop()


def test_run_exec_kill_and_delete(containerd: Containerd) -> None:
    done = containerd.run("one", "/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert containerd.run("two", "/bin/sleep", "60", detach=True).returncode == 0
    done = containerd.ctr("task", "exec", "--exec-id", "e", "two", "/bin/sh", "-c", "echo in; exit 4", check=False)
    assert (done.returncode, done.stdout) == (4, "in\n")
    assert "RUNNING" in containerd.ctr("task", "ls").stdout
    assert "pids" in containerd.ctr("task", "metrics", "two").stdout
    containerd.ctr("task", "kill", "--signal", "KILL", "two")
    removed = containerd.ctr("task", "rm", "two", check=False)
    for _ in range(100):
        if "STOPPED" not in containerd.ctr("task", "ls").stdout and "two" not in containerd.ctr("task", "ls").stdout:
            break
        removed = containerd.ctr("task", "rm", "two", check=False)
    assert "two" not in containerd.ctr("task", "ls").stdout, removed.stderr
    containerd.ctr("container", "rm", "two")


def test_a_missing_program_is_an_error_and_leaves_nothing(containerd: Containerd) -> None:
    done = containerd.run("one", "/bin/nonsense")
    assert done.returncode == 1
    assert "no such file or directory" in done.stderr
    containerd.ctr("container", "rm", "one", check=False)
    assert containerd.run("one", "/bin/true").returncode == 0
