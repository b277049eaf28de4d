"""Engines that a storm can hit: ours and Debian's docker.io with live-restore, each in a private host.

Rule: a victim's processes are killed with SIGKILL by what they are, never asked; what must come back by itself is
waited for, and only the engine is started again from outside, as an init system would.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.chaos.api import Api, Broken
from tests.support.host import PrivateHost, wait_for
from tests.support.images import busybox_rootfs

BACK_SECONDS = 30.0


class Victim:
    """What a storm needs of an engine."""

    name = ""
    targets: tuple[str, ...] = ()
    """Kinds of processes that can be killed; ``shim`` means one of them by chance."""

    def __init__(self, host: PrivateHost, socket_path: str) -> None:
        self.host = host
        self.api = Api(socket_path)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = host.base / "engine.log"
        self.ids: set[str] = set()
        """Of every container there ever was."""

    def command(self) -> list[str]:
        """The engine's command line."""
        raise NotImplementedError

    def pids(self, target: str) -> list[int]:
        """Outer pids of the living processes of a kind."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the engine and wait until it answers."""
        with self.log.open("ab") as sink:
            self._process = self.host.popen(
                *self.command(), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )
        wait_for(self.answers, f"{self.name} to answer; its log is {self.log}", BACK_SECONDS)

    def answers(self) -> bool:
        """Whether the API is served."""
        with contextlib.suppress(Broken):
            return self.api.call("GET", "/_ping", timeout=5).ok
        return False

    def kill(self, target: str, choose: Callable[[list[int]], int]) -> int:
        """SIGKILL to one process of the kind; its pid, 0 when there was none."""
        found = self.pids(target)
        if not found:
            return 0
        pid = choose(sorted(found))
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)
        if target == "engine" and self._process is not None:
            self._process.wait(10)
        return pid

    def load_image(self) -> None:
        """Make the ``busybox`` image."""
        answer = self.api.call("POST", "/images/create", busybox_rootfs(), fromSrc="-", repo="busybox", tag="latest")
        assert answer.ok, answer.message

    def settle(self) -> None:
        """Wait until every helper runs again."""

    def state(self) -> dict[str, Any]:
        """What an engine without containers has: compared before and after."""
        raise NotImplementedError

    def finish(self) -> dict[str, Any]:
        """End the engine; what it left behind."""
        raise NotImplementedError


class Gantry(Victim):
    """Ours."""

    name = "gantry"
    targets = ("engine", "supervisor", "zygote", "keeper", "shim")

    def __init__(self, host: PrivateHost) -> None:
        super().__init__(host, f"{host.exec_root}/gantry.sock")
        self.containerd = host.data_root / "containerd"

    def command(self) -> list[str]:
        roots = ("--data-root", str(self.host.data_root), "--exec-root", str(self.host.exec_root))
        return [sys.executable, "-m", "engine.main", *roots, "--cgroup-parent", self.host.cgroup_parent]

    def pids(self, target: str) -> list[int]:
        if target in ("engine", "supervisor"):
            module = "engine.main" if target == "engine" else "containerd_py.main"
            return [p for p, line in self.host.processes().items() if f"-m {module}" in line and "shutdown" not in line]
        return [pid for pid in self.host.processes() if _comm(pid) == f"gantry-{target}"]

    def settle(self) -> None:
        for target in ("engine", "supervisor", "zygote", "keeper"):
            wait_for(functools.partial(self._is_one, target), f"one {target}", BACK_SECONDS)
        wait_for(self.answers, "the engine to answer", BACK_SECONDS)

    def _is_one(self, target: str) -> bool:
        return len(self.pids(target)) == 1

    def state(self) -> dict[str, Any]:
        root = self.containerd
        return {
            "containers": _names(self.host.data_root / "containers"),
            "snapshots": _names(root / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"),
            "blobs": _names(root / "io.containerd.content.v1.content" / "blobs" / "sha256"),
            "ingests": _names(root / "io.containerd.content.v1.content" / "ingest"),
            "bundles": _names(self.host.exec_root / "containerd" / "io.containerd.runtime.v2.task" / "moby"),
            "runtime": [n for n in _names(self.host.exec_root / "containerd" / "runc" / "moby") if n[0] != "."],
            "shims": len(self.pids("shim")),
            "sockets": _names(self.host.exec_root / "containerd" / "s"),
            "attach": _names(self.host.exec_root / "a"),
            "fifos": _names(self.host.exec_root / "f"),
            "netns": _names(self.host.exec_root / "netns"),
            "mounts": [m for m in self.host.mounts() if "/netns/" not in m],
            "links": [link for link in self.host.links() if link.startswith("veth")],
            "keeper": self._parked(),
        }

    def _parked(self) -> list[str]:
        """Keys for which the keeper still holds descriptors."""
        from protos import fdpass

        with fdpass.connect(f"{self.host.exec_root}/containerd/keeper.sock") as peer:
            keys: list[str] = fdpass.call(peer, {"op": "list"})[0]["keys"]
        return keys

    def finish(self) -> dict[str, Any]:
        url = f"unix://{self.api.path}"
        self.host.check(sys.executable, "-m", "cli.main", "-H", url, "down")
        assert self._process is not None
        self._process.wait(30)
        found = self.host.leftovers()
        for path in (self.host.data_root / "engine.db", self.containerd / "meta.db"):
            with contextlib.closing(sqlite3.connect(path)) as database:
                verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
            if verdict != "ok":
                found[path.name] = verdict
        return found


class Dockerd(Victim):
    """Debian's docker.io with live-restore; its containerd is its child and comes back with it."""

    name = "docker.io"
    targets = ("engine", "supervisor", "shim")

    def __init__(self, host: PrivateHost) -> None:
        super().__init__(host, f"{host.exec_root}/docker.sock")
        host.check("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")

    def command(self) -> list[str]:
        run = self.host.exec_root
        config = self.host.base / "daemon.json"
        config.write_text(json.dumps({"live-restore": True}))
        return [
            "dockerd", "--host", f"unix://{self.api.path}", "--data-root", str(self.host.data_root),
            "--exec-root", f"{run}/x", "--pidfile", f"{run}/docker.pid", "--config-file", str(config),
        ]  # fmt: skip

    def start(self) -> None:
        (self.host.exec_root / "docker.pid").unlink(missing_ok=True)
        super().start()

    def pids(self, target: str) -> list[int]:
        name = {"engine": "dockerd", "supervisor": "containerd", "shim": "containerd-shim"}[target]
        return [pid for pid in self.host.processes() if _comm(pid) == name]

    def settle(self) -> None:
        wait_for(self.answers, "dockerd to answer", BACK_SECONDS)

    def state(self) -> dict[str, Any]:
        return {
            "containers": _names(self.host.data_root / "containers"),
            "layers": _names(self.host.data_root / "overlay2"),
            "shims": len(self.pids("shim")),
            "mounts": [m for m in self.host.mounts() if "overlay2/" in m or "/shm" in m],
            "links": [link for link in self.host.links() if link.startswith("veth")],
        }

    def finish(self) -> dict[str, Any]:
        for pid in self.pids("engine"):
            os.kill(pid, signal.SIGTERM)
        assert self._process is not None
        self._process.wait(60)
        left = {p: line for p, line in self.host.processes().items() if "dockerd" not in line}
        return {"processes": left} if left else {}


def _names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.is_dir() else []


def _comm(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    head, _, rest = stat.rpartition(")")
    return head.partition("(")[2] if rest.split()[0] not in "ZX" else ""


@contextlib.contextmanager
def victim(kind: Callable[[PrivateHost], Victim]) -> Iterator[Victim]:
    """A running engine with a ``busybox`` image."""
    with PrivateHost() as host:
        made = kind(host)
        made.start()
        made.load_image()
        time.sleep(0.2)
        yield made
