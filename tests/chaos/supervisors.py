"""Supervisors that a storm can hit without an engine above them: ours, and Debian's containerd with its runc shim.

Rule: as in ``victims``; the supervisor itself is what an init system would start again.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sqlite3
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

from protos.containerd import containers_pb2, namespaces_pb2
from tests.chaos.lives import Life, Plan
from tests.chaos.task_lives import NAMESPACE, Supervised, TaskLife
from tests.chaos.victims import Victim, comm, names, spare
from tests.support.host import PrivateHost
from tests.support.images import busybox_rootfs


class Supervisor(Victim):
    """What both have in common."""

    restarted = ("supervisor",)
    runtime = ""

    def __init__(self, host: PrivateHost) -> None:
        super().__init__(host, "")
        self.run = host.exec_root / "containerd"
        self.run.mkdir()
        self.address = host.exec_root / "containerd.sock"
        rootfs, output = host.base / "rootfs", host.base / "output"
        output.mkdir()
        with tarfile.open(fileobj=io.BytesIO(busybox_rootfs())) as tar:
            tar.extractall(rootfs, filter="tar")
        for name in ("proc", "dev", "sys"):
            (rootfs / name).mkdir(exist_ok=True)
        self.where = Supervised(str(self.address), rootfs, output, host.cgroup_parent, self.runtime)

    def answers(self) -> bool:
        return self.where.answers()

    def load_image(self) -> None:
        """There is a directory instead; the namespace is made here."""
        namespace = namespaces_pb2.Namespace(name=NAMESPACE)
        self.where.call(self.where.namespaces.Create, namespaces_pb2.CreateNamespaceRequest(namespace=namespace))

    def life(self, plan: Plan, over: threading.Event) -> Life:
        return TaskLife(self.where, plan, over)

    def settle(self) -> None:
        self.start() if not self.pids("supervisor") else None

    def _state(self, runtime: Path) -> dict[str, Any]:
        listed = self.where.call(self.where.containers.List, containers_pb2.ListContainersRequest()).value
        bundles = self.run / "io.containerd.runtime.v2.task" / NAMESPACE
        inside = self.host.check("sh", "-c", f"ls {runtime} 2>/dev/null || true").split()
        return {
            "containers": sorted(container.id for container in listed.containers),
            "bundles": names(bundles),
            "runtime": sorted(inside),
            "shims": len(self.pids("shim")),
            "mounts": [m for m in self.host.mounts() if "rootfs" in m],
        }


class ContainerdPy(Supervisor):
    """Ours."""

    name = "containerd-py"
    targets = ("supervisor", "zygote", "template", "worker", "keeper", "shim")
    runtime = "io.containerd.py.v2"

    def _command(self, *arguments: str) -> list[str]:
        roots = ("--root", str(self.host.data_root), "--state", str(self.run), "--address", str(self.address))
        return [sys.executable, "-m", "containerd_py.main", *roots, *arguments]

    def command(self) -> list[str]:
        return self._command()

    def pids(self, target: str) -> list[int]:
        if target == "supervisor":
            return [p for p, line in self.host.processes().items() if "-m containerd_py.main" in line]
        return [pid for pid in self.host.processes() if comm(pid) == f"gantry-{target}"]

    def spare(self, target: str) -> bool:
        return spare(target, self.run, self.pids)

    def state(self) -> dict[str, Any]:
        return self._state(self.run / "runc" / NAMESPACE)

    def finish(self) -> dict[str, Any]:
        self.host.run(*self._command("shutdown"))
        found = self.host.leftovers()
        with contextlib.closing(sqlite3.connect(self.host.data_root / "meta.db")) as database:
            verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
        found.pop("run files", None)
        return found if verdict == "ok" else {**found, "meta.db": verdict}


class Containerd(Supervisor):
    """Debian's."""

    name = "containerd"
    targets = ("supervisor", "shim")
    runtime = "io.containerd.runc.v2"

    def __init__(self, host: PrivateHost) -> None:
        super().__init__(host)
        host.check("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")

    def command(self) -> list[str]:
        config = self.host.base / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{self.host.data_root}"\nstate = "{self.run}"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self.address}"\n'
        )
        program = shutil.which("containerd")
        assert program, "install containerd"
        return [program, "-c", str(config)]

    def pids(self, target: str) -> list[int]:
        name = {"supervisor": "containerd", "shim": "containerd-shim"}[target]
        return [pid for pid in self.host.processes() if comm(pid) == name]

    def state(self) -> dict[str, Any]:
        return self._state(Path("/run/containerd/runc") / NAMESPACE)

    def finish(self) -> dict[str, Any]:
        for pid in self.pids("supervisor"):
            os.kill(pid, signal.SIGTERM)
        assert self._process is not None
        self._process.wait(60)
        left = {pid: line for pid, line in self.host.processes().items() if "containerd -c" not in line}
        return {"processes": left} if left else {}
