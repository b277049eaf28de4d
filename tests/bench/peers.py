"""Engines to measure side by side, each in a private host of its own: ours and Debian's docker.io.

Rule: the peers get the same client, the same image and the same kind of private host; what differs is the engine.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import IO, Protocol

from tests.support.engine import DOCKER, Engine
from tests.support.host import PrivateHost, wait_for

IMAGE = "docker.io/library/busybox:latest"


def mount_tmpfs(host: PrivateHost, directory: str) -> None:
    """What daemons keep for the time they run lies in memory, as below ``/run`` of a real host."""
    host.check("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", directory)


class Peer(Protocol):
    """An engine that the docker CLI talks to."""

    name: str
    host: PrivateHost
    url: str

    def docker(self, *arguments: str, stdin: bytes | IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
        """Run the docker CLI to its end; raises when it fails."""

    def daemons(self) -> list[int]:
        """Outer pids of what serves the API and what stays beside it for all containers."""

    def restart(self) -> None:
        """End the daemons as an upgrade does, containers going on, and start them; returns when that is under way."""


class Gantry(Engine):
    """Our engine."""

    name = "gantry"

    def daemons(self) -> list[int]:
        return [self.pid("engine.main"), self.pid("containerd_py.main")]

    def restart(self) -> None:
        for name in ("engine.main", "containerd_py.main"):
            _end(self.host, self.pid(name))
        if self._process is not None:
            self._process.wait(30)
        self.launch()


class Dockerd:
    """Debian's dockerd with its own containerd and runc."""

    name = "docker.io"

    def __init__(self, host: PrivateHost, *flags: str) -> None:
        self.host = host
        self._flags = flags
        self.url = f"unix://{host.exec_root}/docker.sock"
        self._log = open(host.base / "dockerd.log", "ab")  # noqa: SIM115 - closed by stop()
        for directory in ("/run", str(host.exec_root)):
            mount_tmpfs(host, directory)
        self._process = self._launched()
        wait_for(self._up, f"dockerd to answer (log: {host.base}/dockerd.log)", 60)

    def _launched(self) -> subprocess.Popen[bytes]:
        return self.host.popen(
            "dockerd", "--host", self.url, "--data-root", str(self.host.data_root),
            "--exec-root", f"{self.host.exec_root}/x", "--pidfile", f"{self.host.exec_root}/docker.pid", *self._flags,
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True,
        )  # fmt: skip

    @property
    def containerd(self) -> str:
        """The socket of its containerd, for ``ctr``."""
        return f"{self.host.exec_root}/x/containerd/containerd.sock"

    def daemons(self) -> list[int]:
        return [_only(self.host, "dockerd", "--pidfile"), _only(self.host, "containerd", "--config")]

    def restart(self) -> None:
        _end(self.host, self.daemons()[0])
        self._process.wait(60)
        self._process = self._launched()

    def _up(self) -> bool:
        assert self._process.poll() is None, (self.host.base / "dockerd.log").read_text()[-3000:]
        return self.host.run(DOCKER, "-H", self.url, "version").returncode == 0

    def docker(self, *arguments: str, stdin: bytes | IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
        """The docker CLI inside the host."""
        return _checked(self.host, DOCKER, "-H", self.url, *arguments, stdin=stdin)

    def stop(self) -> None:
        """End the daemon; the private host takes what is left."""
        _end(self.host, self.daemons()[0])
        self._process.wait(60)
        self._log.close()


class Podman:
    """Debian's podman and its service for clients; with runc, for its crun refuses cgroups of both versions."""

    name = "podman"

    def __init__(self, host: PrivateHost) -> None:
        self.host = host
        self.url = f"unix://{host.exec_root}/podman.sock"
        for directory in ("/run", str(host.exec_root)):
            mount_tmpfs(host, directory)
        host.check("ip", "link", "set", "lo", "up")
        self._command = (
            "podman", "--root", str(host.data_root), "--runroot", f"{host.exec_root}/x", "--storage-driver", "overlay",
            "--cgroup-manager", "cgroupfs", "--runtime", "runc",
        )  # fmt: skip
        self._service = host.popen(*self._command, "system", "service", "--time", "0", self.url)
        wait_for(lambda: host.run(DOCKER, "-H", self.url, "version").returncode == 0, "podman's service", 60)

    def docker(self, *arguments: str, stdin: bytes | IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
        """The docker CLI inside the host."""
        return _checked(self.host, DOCKER, "-H", self.url, *arguments, stdin=stdin)

    def podman(self, *arguments: str, stdin: bytes | IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
        """Its own command."""
        return _checked(self.host, *self._command, *arguments, stdin=stdin)

    def daemons(self) -> list[int]:
        return [_only(self.host, "system service")]

    def restart(self) -> None:
        raise NotImplementedError("podman has no daemon that containers depend on")

    def stop(self) -> None:
        """End the service."""
        _end(self.host, self.daemons()[0])
        self._service.wait(30)


def _checked(host: PrivateHost, *command: str, stdin: bytes | IO[bytes] | None) -> subprocess.CompletedProcess[str]:
    done = host.run(*command, stdin=stdin, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def _only(host: PrivateHost, *words: str) -> int:
    lines = host.processes()
    (pid,) = (p for p, line in lines.items() if all(word in line for word in words) and "nsenter" not in line)
    return pid


def _end(host: PrivateHost, pid: int) -> None:
    host.check("kill", host.inner_pid(pid))
    wait_for(lambda: pid not in host.processes(), f"process {pid} to end", 60)


@contextlib.contextmanager
def gantry(*flags: str) -> Iterator[Gantry]:
    """Our engine, running."""
    with PrivateHost() as host:
        mount_tmpfs(host, str(host.exec_root))
        engine = Gantry(host, *flags)
        engine.start()
        try:
            yield engine
        finally:
            engine.down()


@contextlib.contextmanager
def dockerd(*flags: str) -> Iterator[Dockerd]:
    """Debian's engine, running."""
    assert shutil.which("dockerd"), "dockerd is missing: apt-get install docker.io"
    with PrivateHost() as host:
        engine = Dockerd(host, *flags)
        try:
            yield engine
        finally:
            engine.stop()


@contextlib.contextmanager
def podman() -> Iterator[Podman]:
    """Debian's podman, its service running."""
    assert shutil.which("podman"), "podman is missing: apt-get install podman"
    with PrivateHost() as host:
        engine = Podman(host)
        try:
            yield engine
        finally:
            engine.stop()
