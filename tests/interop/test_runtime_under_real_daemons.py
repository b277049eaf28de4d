"""The distribution's containerd and dockerd with their own shim and our runtime behind it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.host import PrivateHost, private_host, wait_for
from tests.support.images import busybox_rootfs
from tests.support.newer import MISSING, working_criu

pytestmark = pytest.mark.root

CRIU = working_criu()
RUNTIME = str(Path(sys.executable).with_name("runc-py"))
Client = Callable[..., CompletedProcess[str]]
MEMORY = "/sys/fs/cgroup/memory/memory.limit_in_bytes"


@pytest.fixture
def host() -> Iterator[PrivateHost]:
    with private_host() as made:
        yield made


def start(host: PrivateHost, name: str, *command: str) -> subprocess.Popen[bytes]:
    """A daemon inside ``host``, with a /run/containerd of its own and its output in a file."""
    script = 'mkdir -p /run/containerd; mount -t tmpfs tmpfs /run/containerd; exec "$@"'
    with (host.base / f"{name}.log").open("wb") as log:
        return host.popen("sh", "-c", script, name, *command, stdout=log, stderr=subprocess.STDOUT)


@pytest.fixture
def ctr(host: PrivateHost) -> Iterator[Client]:
    assert shutil.which("containerd"), "containerd is missing: apt-get install containerd"
    address = host.base / "containerd.sock"
    config = host.base / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{host.base}/root"\nstate = "{host.base}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{address}"\n'
        f'[ttrpc]\naddress = "{address}.ttrpc"\n'
    )
    daemon = start(host, "containerd", "containerd", "--config", str(config))
    wait_for(address.exists, "containerd")
    yield lambda *arguments: host.run("ctr", "--address", str(address), *arguments)
    daemon.terminate()
    daemon.wait(10)


def test_ctr_run_exec_pause_and_kill(host: PrivateHost, ctr: Client) -> None:
    rootfs = host.base / "rootfs"
    rootfs.mkdir()
    subprocess.run(["tar", "-x", "-C", str(rootfs)], input=busybox_rootfs(), check=True)
    run = ("run", "--runc-binary", RUNTIME)
    done = ctr(*run, "--rm", "--rootfs", str(rootfs), "one", "/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert ctr(*run, "--detach", "--rootfs", str(rootfs), "two", "/bin/sleep", "1000").returncode == 0
    done = ctr("task", "exec", "--exec-id", "e", "two", "/bin/sh", "-c", "echo in; exit 4")
    assert (done.returncode, done.stdout) == (4, "in\n")
    assert ctr("task", "pause", "two").returncode == 0
    assert "PAUSED" in ctr("task", "ls").stdout
    assert ctr("task", "resume", "two").returncode == 0
    assert "pids.current" in ctr("task", "metrics", "two").stdout
    assert ctr("task", "kill", "--signal", "KILL", "two").returncode == 0
    wait_for(lambda: "STOPPED" in ctr("task", "ls").stdout, "the end of the task")
    ctr("task", "rm", "two")
    assert "two" not in ctr("task", "ls").stdout
    done = ctr(*run, "--rm", "--rootfs", str(rootfs), "three", "/bin/nonsense")
    assert "OCI runtime create failed: runc-py create failed" in done.stderr


@pytest.fixture
def docker(host: PrivateHost, tmp_path: Path) -> Iterator[Client]:
    assert shutil.which("dockerd"), "dockerd is missing: apt-get install docker.io"
    base = host.base
    config = base / "daemon.json"
    config.write_text(json.dumps({"runtimes": {"ours": {"path": RUNTIME}}, "experimental": True}))
    address = f"unix://{base}/docker.sock"
    if CRIU is not None:
        (tmp_path / "criu").symlink_to(CRIU)
    command = [
        "env",
        f"PATH={tmp_path}:{os.environ['PATH']}",
        "dockerd",
        "--config-file",
        str(config),
        "-H",
        address,
        "--data-root",
        f"{base}/docker",
    ]
    command += ["--exec-root", f"{base}/exec", "--pidfile", f"{base}/docker.pid", "--bridge", "none"]
    daemon = start(host, "dockerd", *command, "--iptables=false", "--storage-driver", "vfs")

    def client(*arguments: str, stdin: bytes | None = None) -> CompletedProcess[str]:
        return host.run("docker", "-H", address, *arguments, stdin=stdin)

    wait_for(lambda: client("version").returncode == 0, "dockerd", 30)
    assert client("import", "-", "box", stdin=busybox_rootfs()).returncode == 0
    yield client
    daemon.terminate()
    daemon.wait(20)


def test_docker_run_exec_update_and_stop(docker: Client) -> None:
    ours = ("--runtime", "ours", "--network", "none")
    done = docker("run", "--rm", *ours, "box", "sh", "-c", "echo hi; grep Seccomp: /proc/self/status; exit 5")
    assert (done.returncode, done.stdout) == (5, "hi\nSeccomp:\t2\n"), done.stderr
    assert docker("run", "--detach", "--name", "one", *ours, "-m", "64m", "box", "sleep", "1000").returncode == 0
    done = docker("exec", "one", "sh", "-c", f"cat {MEMORY}; exit 6")
    assert (done.returncode, done.stdout) == (6, f"{64 << 20}\n")
    assert docker("update", "-m", "80m", "--memory-swap", "80m", "one").returncode == 0
    assert docker("exec", "one", "cat", MEMORY).stdout == f"{80 << 20}\n"
    assert docker("pause", "one").returncode == 0
    assert "Paused" in docker("ps").stdout
    assert docker("unpause", "one").returncode == 0
    assert "sleep 1000" in docker("top", "one").stdout
    assert docker("stop", "--time", "0", "one").returncode == 0
    assert docker("inspect", "--format", "{{.State.ExitCode}} {{.HostConfig.Runtime}}", "one").stdout == "137 ours\n"
    assert docker("rm", "one").returncode == 0
    done = docker("run", "--rm", *ours, "box", "nonsense")
    assert done.returncode == 127
    assert "executable file not found in $PATH" in done.stderr


@pytest.mark.skipif(CRIU is None, reason=f"no criu works with this kernel; newer one {MISSING}")
def test_docker_checkpoint_and_start_from_it(docker: Client) -> None:
    count = "i=0; while true; do i=$((i+1)); echo $i >/count; sleep 0.1; done"

    def counted() -> int:
        done = docker("exec", "kept", "cat", "/count")
        return int(done.stdout) if done.stdout.strip().isdigit() else 0

    run = ("run", "--detach", "--name", "kept", "--runtime", "ours", "--network", "none", "box", "sh", "-c", count)
    assert docker(*run).returncode == 0
    wait_for(lambda: counted() > 3, "the first steps")
    before = counted()
    done = docker("checkpoint", "create", "kept", "one")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: "Exited (137)" in docker("ps", "--all").stdout, "its end: the checkpoint has it now")
    # dockerd puts the checkpoint into containerd's store once more, where it may lie still: until a collection.
    wait_for(lambda: docker("start", "--checkpoint", "one", "kept").returncode == 0, "the start")
    assert counted() > before
    here = counted()
    wait_for(lambda: counted() > here, "it goes on")
    assert docker("rm", "--force", "kept").returncode == 0
