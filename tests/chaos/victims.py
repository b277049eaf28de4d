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
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from protos import fdpass
from tests.chaos.api import Api, Broken
from tests.chaos.lives import Life, Plan
from tests.support.host import PrivateHost, wait_for
from tests.support.images import busybox_rootfs

BACK_SECONDS = 30.0


class Victim:
    """What a storm needs of an engine."""

    name = ""
    targets: tuple[str, ...] = ()
    """Kinds of processes that can be killed; ``shim`` means one of them by chance."""

    restarted: tuple[str, ...] = ("engine",)
    """Those that an init system would start again; the others come back by themselves."""

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
        if target in self.restarted and self._process is not None:
            self._process.wait(10)
        return pid

    def life(self, plan: Plan, over: threading.Event) -> Life:
        """A life to lead here."""
        return Life(self.api, plan, over)

    def spare(self, target: str) -> bool:
        """Whether a ``target`` may be killed now: no engine could give back what has one holder left."""
        return True

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
    targets = ("engine", "supervisor", "zygote", "template", "worker", "keeper", "shim")

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
        return [pid for pid in self.host.processes() if comm(pid) == f"gantry-{target}"]

    def settle(self) -> None:
        for target in ("engine", "supervisor", "zygote", "keeper"):
            wait_for(functools.partial(self._is_one, target), f"one {target}", BACK_SECONDS)
        wait_for(self.answers, "the engine to answer", BACK_SECONDS)

    def _is_one(self, target: str) -> bool:
        return len(self.pids(target)) == 1

    def state(self) -> dict[str, Any]:
        root = self.containerd
        return {
            "containers": names(self.host.data_root / "containers"),
            "snapshots": names(root / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"),
            "blobs": names(root / "io.containerd.content.v1.content" / "blobs" / "sha256"),
            "ingests": names(root / "io.containerd.content.v1.content" / "ingest"),
            "bundles": names(self.host.exec_root / "containerd" / "io.containerd.runtime.v2.task" / "moby"),
            "runtime": [n for n in names(self.host.exec_root / "containerd" / "runc" / "moby") if n[0] != "."],
            "shims": len(self.pids("shim")),
            "sockets": names(self.host.exec_root / "containerd" / "s"),
            "attach": names(self.host.exec_root / "a"),
            "fifos": names(self.host.exec_root / "f"),
            "netns": names(self.host.exec_root / "netns"),
            "mounts": [m for m in self.host.mounts() if "/netns/" not in m],
            "links": [link for link in self.host.links() if link.startswith("veth")],
            "keeper": parked(self.host.exec_root / "containerd"),
        }

    def spare(self, target: str) -> bool:
        return spare(target, self.host.exec_root / "containerd", self.pids)

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
        return [pid for pid in self.host.processes() if comm(pid) == name]

    def settle(self) -> None:
        wait_for(self.answers, "dockerd to answer", BACK_SECONDS)

    def state(self) -> dict[str, Any]:
        return {
            "containers": names(self.host.data_root / "containers"),
            "layers": names(self.host.data_root / "overlay2"),
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


def names(directory: Path) -> list[str]:
    """What is in the directory; nothing when there is none."""
    return sorted(os.listdir(directory)) if directory.is_dir() else []


def parked(state: Path) -> list[str]:
    """Keys for which the keeper holds descriptors."""
    with fdpass.connect(f"{state}/keeper.sock", timeout=5.0) as peer:
        keys: list[str] = fdpass.call(peer, {"op": "list"})[0]["keys"]
    return keys


def spare(target: str, state: Path, pids: Callable[[str], list[int]]) -> bool:
    """A container's descriptors are its shim's and the keeper's: one of the two goes when the other has them."""
    if target not in ("shim", "keeper"):
        return True
    bundles = state / "io.containerd.runtime.v2.task" / "moby"
    alive = [n for n in names(bundles) if (bundles / n / "init.pid").exists() and n[0] != "."]
    alive = [n for n in alive if not (bundles / n / "exits" / "init").exists()]
    if target == "keeper":
        open_files = [_links(pid) for pid in pids("shim")]
        served = {link for links in open_files if "anon_inode:[pidfd]" in links for link in links}
        return all(f"{bundles}/{name}/shim.lock" in served for name in alive)
    try:
        return {f"moby/{name}" for name in alive} <= set(parked(state))
    except OSError:
        return False


def _links(pid: int) -> set[str]:
    """What the process has open."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def comm(pid: int) -> str:
    """The name of a process; empty when it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    head, _, rest = stat.rpartition(")")
    return head.partition("(")[2] if rest.split()[0] not in "ZX" else ""


@contextlib.contextmanager
def victim(kind: Callable[[PrivateHost], Victim]) -> Iterator[Victim]:
    """A running engine with a ``busybox`` image. Our shims are at rest whenever they can, the sooner to be woken."""
    with PrivateHost(variables={"GANTRY_SHIM_REST": "0.05"}) as host:
        made = kind(host)
        made.start()
        made.load_image()
        time.sleep(0.2)
        yield made
