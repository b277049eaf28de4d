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


class Gantry(Engine):
    """Our engine."""

    name = "gantry"


class Dockerd:
    """Debian's dockerd with its own containerd and runc."""

    name = "docker.io"

    def __init__(self, host: PrivateHost) -> None:
        self.host = host
        self.url = f"unix://{host.exec_root}/docker.sock"
        self._log = open(host.base / "dockerd.log", "ab")  # noqa: SIM115 - closed by stop()
        for directory in ("/run", str(host.exec_root)):
            mount_tmpfs(host, directory)
        self._process = host.popen(
            "dockerd", "--host", self.url, "--data-root", str(host.data_root), "--exec-root", f"{host.exec_root}/x",
            "--pidfile", f"{host.exec_root}/docker.pid",
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        wait_for(self._up, f"dockerd to answer (log: {host.base}/dockerd.log)", 60)

    def _up(self) -> bool:
        assert self._process.poll() is None, (self.host.base / "dockerd.log").read_text()[-3000:]
        return self.host.run(DOCKER, "-H", self.url, "version").returncode == 0

    def docker(self, *arguments: str, stdin: bytes | IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
        """The docker CLI inside the host."""
        done = self.host.run(DOCKER, "-H", self.url, *arguments, stdin=stdin, timeout=300)
        assert done.returncode == 0, f"docker {arguments}: {done.stdout}{done.stderr}"
        return done

    def stop(self) -> None:
        """End the daemon; the private host takes what is left."""
        (pid,) = (p for p in self.host.pids_of("dockerd", "--pidfile") if "nsenter" not in self.host.processes()[p])
        self.host.check("kill", self.host.inner_pid(pid))
        self._process.wait(30)
        self._log.close()


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
def dockerd() -> Iterator[Dockerd]:
    """Debian's engine, running."""
    assert shutil.which("dockerd"), "dockerd is missing: apt-get install docker.io"
    with PrivateHost() as host:
        engine = Dockerd(host)
        try:
            yield engine
        finally:
            engine.stop()
