"""A real containerd-py in a private host, driven over gRPC as any client would."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd import (
    containers_pb2,
    containers_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    namespaces_pb2,
    namespaces_pb2_grpc,
    task_types_pb2,
    tasks_pb2,
    tasks_pb2_grpc,
    types_pb2,
    version_pb2_grpc,
)
from tests.support.host import PrivateHost, wait_for

NAMESPACE = "moby"
METADATA = (("containerd-namespace", NAMESPACE),)
SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
OWN_RUNTIME = "io.containerd.py.v2"
CALL_SECONDS = 20.0


def process(arguments: Sequence[str]) -> dict[str, Any]:
    """An OCI process that runs ``arguments`` as root."""
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": list(arguments),
        "env": ["PATH=/bin"],
        "cwd": "/",
        "noNewPrivileges": True,
    }


def spec(arguments: Sequence[str]) -> dict[str, Any]:
    """A minimal container with its own pid, mount, uts and ipc namespaces and no network."""
    return {
        "ociVersion": "1.1.0",
        "process": process(arguments),
        "root": {"path": "rootfs"},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {"namespaces": [{"type": name} for name in ("pid", "mount", "uts", "ipc", "network")]},
    }


class Supervisor:
    """The daemon with its directories in ``host``, and stubs for its API."""

    def __init__(self, host: PrivateHost, rootfs: bytes) -> None:
        self.host = host
        self.root = host.data_root / "containerd"
        self.state = host.exec_root / "containerd"
        self.address = self.state / "containerd.sock"
        self.log = host.base / "containerd-py.log"
        self.lower = host.base / "rootfs"
        with tarfile.open(fileobj=io.BytesIO(rootfs)) as tar:
            tar.extractall(self.lower, filter="tar")
        for name in ("proc", "dev", "sys"):
            (self.lower / name).mkdir(exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: grpc.Channel | None = None

    def command(self, *arguments: str) -> list[str]:
        base = [sys.executable, "-m", "containerd_py.main", "--root", str(self.root), "--state", str(self.state)]
        return [*base, "--log-level", "debug", *arguments]

    def start(self) -> None:
        with self.log.open("ab") as sink:
            self.process = self.host.popen(
                *self.command(), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )
        self.channel = grpc.insecure_channel(f"unix:{self.address}", options=(("grpc.use_local_subchannel_pool", 1),))
        version = version_pb2_grpc.VersionStub(self.channel)
        from google.protobuf.empty_pb2 import Empty

        wait_for(
            lambda: self.process is not None and self.process.poll() is None and answers(version, Empty()), "daemon"
        )
        self.tasks = tasks_pb2_grpc.TasksStub(self.channel)
        self.containers = containers_pb2_grpc.ContainersStub(self.channel)
        self.events = events_pb2_grpc.EventsStub(self.channel)
        namespace = namespaces_pb2.Namespace(name=NAMESPACE)
        with contextlib.suppress(grpc.RpcError):
            namespaces_pb2_grpc.NamespacesStub(self.channel).Create(
                namespaces_pb2.CreateNamespaceRequest(namespace=namespace), metadata=METADATA
            )

    def daemon_pid(self) -> int:
        """The daemon's pid outside the private host (``self.process`` is nsenter)."""
        return self.host.pids_of("containerd_py.main", str(self.root))[0]

    def kill(self, *pids: int) -> None:
        """SIGKILL ``pids``, the daemon's by default, and wait for their ends."""
        for pid in pids or (self.daemon_pid(),):
            kill_and_wait(pid)
        if not pids and self.process is not None:
            self.process.wait(10)
            self.process = None
            assert self.channel is not None
            self.channel.close()

    def named(self, name: str) -> list[int]:
        """Outer pids of the processes inside that call themselves ``name`` (forks share their command line)."""
        found = (pid for pid in self.host.processes())
        return [pid for pid in found if comm(pid) == name]

    def shutdown(self, *flags: str) -> subprocess.CompletedProcess[str]:
        done = self.host.run(*self.command("shutdown", *flags))
        if self.process is not None:
            self.process.wait(10)
            self.process = None
        return done

    def shim_pid(self, id: str) -> int:
        """Outer pid of the shim of ``id``. Not by init's parent: that may still be the fork which started it."""
        return self._noted(id, "shim.pid")

    def init_pid(self, id: str) -> int:
        """Outer pid of the container's first process."""
        return self._noted(id, "init.pid")

    def _noted(self, id: str, name: str) -> int:
        inner = (self.bundle(id) / name).read_text().strip()
        return next(pid for pid in self.host.processes() if self.host.inner_pid(pid) == inner)

    def bundle(self, id: str) -> Path:
        return self.state / "io.containerd.runtime.v2.task" / NAMESPACE / id

    def out(self, id: str) -> Path:
        return self.host.base / f"{id}.out"

    def create(self, id: str, *arguments: str, runtime: str = OWN_RUNTIME) -> int:
        """Create container and task; standard output goes to a file. Returns the pid."""
        container = containers_pb2.Container(id=id)
        container.runtime.name = runtime
        container.spec.CopyFrom(AnyMessage(type_url=SPEC_TYPE, value=json.dumps(spec(arguments)).encode()))
        self.containers.Create(
            containers_pb2.CreateContainerRequest(container=container), metadata=METADATA, timeout=CALL_SECONDS
        )
        return self.create_task(id)

    def create_task(self, id: str) -> int:
        layers = self.host.base / "layers" / id
        for name in ("upper", "work"):
            (layers / name).mkdir(parents=True, exist_ok=True)
        options = [f"lowerdir={self.lower}", f"upperdir={layers}/upper", f"workdir={layers}/work", "index=off"]
        rootfs = types_pb2.Mount(type="overlay", source="overlay", options=options)
        request = tasks_pb2.CreateTaskRequest(
            container_id=id, rootfs=[rootfs], stdout=f"file://{self.out(id)}", stderr=f"file://{self.out(id)}"
        )
        return self.tasks.Create(request, metadata=METADATA, timeout=CALL_SECONDS).pid

    def start_task(self, id: str) -> int:
        return self.tasks.Start(tasks_pb2.StartRequest(container_id=id), metadata=METADATA, timeout=CALL_SECONDS).pid

    def wait(self, id: str, seconds: float = CALL_SECONDS) -> int:
        return self.tasks.Wait(tasks_pb2.WaitRequest(container_id=id), metadata=METADATA, timeout=seconds).exit_status

    def wait_later(self, id: str) -> Any:
        """A future of ``wait``."""
        return self.tasks.Wait.future(tasks_pb2.WaitRequest(container_id=id), metadata=METADATA, timeout=CALL_SECONDS)

    def get(self, id: str) -> task_types_pb2.Process:
        return self.tasks.Get(tasks_pb2.GetRequest(container_id=id), metadata=METADATA, timeout=CALL_SECONDS).process

    def signal(self, id: str, number: int) -> None:
        self.tasks.Kill(tasks_pb2.KillRequest(container_id=id, signal=number), metadata=METADATA, timeout=CALL_SECONDS)

    def delete_task(self, id: str) -> int:
        request = tasks_pb2.DeleteTaskRequest(container_id=id)
        return self.tasks.Delete(request, metadata=METADATA, timeout=CALL_SECONDS).exit_status

    def delete(self, id: str) -> int:
        """Delete task and container; the exit status."""
        status = self.delete_task(id)
        self.containers.Delete(containers_pb2.DeleteContainerRequest(id=id), metadata=METADATA, timeout=CALL_SECONDS)
        return status

    def subscribe(self, *filters: str) -> Any:
        """A stream of envelopes that misses nothing from now on."""
        stream = self.events.Subscribe(events_pb2.SubscribeRequest(filters=filters), timeout=2 * CALL_SECONDS)
        stream.initial_metadata()
        return stream


def answers(version: version_pb2_grpc.VersionStub, empty: Any) -> bool:
    try:
        version.Version(empty, timeout=1)
    except grpc.RpcError:
        return False
    return True


def comm(pid: int) -> str:
    """What the process calls itself; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill_and_wait(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline, f"{pid} survives SIGKILL"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def supervisor(rootfs: bytes, **variables: str) -> Iterator[Supervisor]:
    """A running daemon in a host of its own; at the end it is shut down and must have left nothing.

    ``variables`` are added to its environment.
    """
    with PrivateHost(variables=variables) as host:
        daemon = Supervisor(host, rootfs)
        daemon.start()
        try:
            yield daemon
        except BaseException:
            sys.stderr.write(daemon.log.read_text()[-8000:])
            raise
        done = daemon.shutdown("--kill")
        assert done.returncode == 0, done.stderr + daemon.log.read_text()[-4000:]
        left = host.leftovers()
        assert left == {}, left
