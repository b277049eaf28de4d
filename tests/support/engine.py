"""An engine inside a private host, and the real docker client in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tests.support.host import PrivateHost, wait_for

DOCKER = shutil.which("docker") or "docker"


def now() -> str:
    """This moment as clients may give it to ``--since`` and ``--until``: seconds of the epoch to the nanosecond."""
    nanoseconds = time.time_ns()
    return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}"


class Engine:
    """gantryd with its own containerd-py in ``host``; real docker CLI calls go to it."""

    def __init__(self, host: PrivateHost, *flags: str) -> None:
        self.host = host
        self.flags = flags
        self.socket = f"{host.exec_root}/gantry.sock"
        self.url = f"unix://{self.socket}"
        self.log = host.base / "gantryd.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def roots(self) -> tuple[str, ...]:
        return ("--data-root", str(self.host.data_root), "--exec-root", str(self.host.exec_root))

    def start(self, ready: Callable[[], bool] | None = None) -> None:
        """Start gantryd and wait until it answers, or until what ``ready`` looks for is there."""
        self.launch()
        wait_for(ready or self._up, f"the engine to answer\n{self.log_text()}", 30)

    def launch(self) -> None:
        """Start gantryd."""
        with open(self.log, "ab") as sink:
            self._process = self.host.popen(
                sys.executable, "-m", "engine.main", *self.roots, *self._cgroups(), *self.flags,
                stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True,
            )  # fmt: skip

    def _cgroups(self) -> tuple[str, ...]:
        """Cgroups of a parent of its own, so that what is left there is ours and nobody else's."""
        return () if "--cgroup-parent" in self.flags else ("--cgroup-parent", self.host.cgroup_parent)

    def _up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"gantryd ended with {self._process.returncode}\n{self.log_text()}"
        return self.docker("version", "--format", "{{.Server.Version}}", check=False).returncode == 0

    def log_text(self) -> str:
        """What the daemons said so far: the end of both logs."""
        texts = []
        for path in (self.log, self.host.data_root / "containerd-py.log"):
            with contextlib.suppress(OSError):
                texts.append(f"--- {path.name}\n{path.read_text()[-6000:]}")
        return "\n".join(texts)

    def down(self) -> None:
        """``gantry down``: stops containers and daemons."""
        self.host.check(sys.executable, "-m", "cli.main", "-H", self.url, "down")
        if self._process is not None:
            self._process.wait(20)

    def pid(self, name: str) -> int:
        """Outer pid of one daemon: ``engine.main``, ``containerd_py.main``, ``shim.zygote``, ``shim.keeper``."""
        (pid,) = self.host.pids_of(name)
        return pid

    def kill(self, name: str) -> None:
        """SIGKILL to one daemon, gone when this returns."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        if name == "engine.main" and self._process is not None:
            self._process.wait(10)
        wait_for(lambda: pid not in self.host.processes(), f"{name} to die")

    def kill_shim(self, container: str) -> int:
        """SIGKILL to the shim of ``container`` (a full id); its pid."""
        pid = self.shim(container)
        os.kill(pid, signal.SIGKILL)
        return pid

    def shim(self, container: str) -> int:
        """Outer pid of the shim of ``container`` (a full id); 0 when there is none just now."""
        bundle = f"{self.host.exec_root}/containerd/io.containerd.runtime.v2.task/moby/{container}"
        inner = Path(f"/proc/{self.host.pid}/root{bundle}/shim.pid").read_text().strip()
        return next((p for p in self.host.processes() if self.host.inner_pid(p) == inner), 0)

    def docker(
        self,
        *arguments: str,
        stdin: bytes | IO[bytes] | None = None,
        check: bool = True,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """The real docker CLI, inside the host; with ``check`` a non-zero status fails the test."""
        done = self.host.run(DOCKER, "-H", self.url, *arguments, stdin=stdin, timeout=timeout)
        if check:
            assert done.returncode == 0, (
                f"docker {arguments}: {done.returncode}\n{done.stdout}{done.stderr}{self.log_text()}"
            )
        return done

    def gantry(
        self, *arguments: str, check: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The gantry CLI, inside the host."""
        done = self.host.run(sys.executable, "-m", "cli.main", "-H", self.url, *arguments, stdin=stdin)
        if check:
            assert done.returncode == 0, (
                f"gantry {arguments}: {done.returncode}\n{done.stdout}{done.stderr}{self.log_text()}"
            )
        return done

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """The docker CLI inside the host, not waited for."""
        return self.host.popen(DOCKER, "-H", self.url, *arguments, **options)

    def api(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One raw API request; (status, decoded JSON or text)."""
        command = ["curl", "-s", "-X", method, "--unix-socket", self.socket, "-w", "\n%{http_code}"]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        text, _, status = self.host.check(*command, f"http://engine{path}").rpartition("\n")
        try:
            return int(status), json.loads(text)
        except ValueError:
            return int(status), text
