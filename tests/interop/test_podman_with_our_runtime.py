"""The distribution's podman with ``--runtime runc-py``: conmon creates, podman starts, execs, stops and removes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.host import PrivateHost, private_host
from tests.support.images import busybox_rootfs

pytestmark = pytest.mark.root

RUNTIME = str(Path(sys.executable).with_name("runc-py"))


class Podman:
    """podman with storage and state of its own in a private host."""

    def __init__(self, host: PrivateHost) -> None:
        self.host = host
        base = host.base
        self._command = ["podman", "--root", f"{base}/storage", "--runroot", f"{base}/runroot"]
        self._command += ["--tmpdir", f"{base}/tmp", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]
        self._command += ["--events-backend", "file", "--runtime", RUNTIME]

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> CompletedProcess[str]:
        return self.host.run(*self._command, *arguments, stdin=stdin)

    def check(self, *arguments: str, stdin: bytes | None = None) -> str:
        done = self(*arguments, stdin=stdin)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    assert shutil.which("podman"), "podman is missing: apt-get install podman"
    with private_host() as host:
        made = Podman(host)
        made.check("import", "-", "box", stdin=busybox_rootfs())
        yield made
        made("rm", "--all", "--force", "--time", "0")
        assert not host.leftovers()


def test_run_gives_output_and_exit_code(podman: Podman) -> None:
    done = podman("run", "--rm", "--network", "none", "box", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_a_missing_program_is_127(podman: Podman) -> None:
    done = podman("run", "--rm", "--network", "none", "box", "nonsense")
    assert done.returncode == 127, done.stderr
    assert "executable file not found in $PATH" in done.stderr


def test_exec_limits_pause_update_stop_and_rm(podman: Podman) -> None:
    limits = ("--memory", "64m", "--pids-limit", "20")
    podman.check("run", "--detach", "--name", "one", "--network", "none", *limits, "box", "sleep", "1000")
    memory = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    done = podman("exec", "one", "sh", "-c", f"cat {memory}; exit 4")
    assert (done.returncode, done.stdout) == (4, f"{64 << 20}\n")
    assert "tty" in podman.check("exec", "--tty", "one", "sh", "-c", "test -t 1 && echo tty")
    podman.check("pause", "one")
    assert json.loads(podman.check("inspect", "one"))[0]["State"]["Status"] == "paused"
    podman.check("unpause", "one")
    podman.check("update", "--memory", "128m", "one")
    assert podman.check("exec", "one", "cat", memory) == str(128 << 20)
    podman.check("stop", "--time", "0", "one")
    assert json.loads(podman.check("inspect", "one"))[0]["State"]["ExitCode"] == 137
    podman.check("rm", "one")
    assert podman.check("ps", "--all", "--quiet") == ""


def test_user_namespace(podman: Podman) -> None:
    mapping = ("--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000")
    text = podman.check("run", "--rm", "--network", "none", *mapping, "box", "cat", "/proc/self/uid_map")
    assert text.split() == ["0", "100000", "1000"]


def test_podman_saw_our_runtime(podman: Podman) -> None:
    described = json.loads(podman.check("info", "--format", "json"))["host"]["ociRuntime"]
    assert described["path"] == RUNTIME
    assert "runc-py version" in described["version"]
