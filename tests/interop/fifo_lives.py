"""Tasks of containerd-py as containerd's own clients run them: stdio by FIFOs that the client makes."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd import containers_pb2, runc_options_pb2, tasks_pb2, types_pb2
from tests.integration.tasks.supervisor import (
    CALL_SECONDS,
    METADATA,
    OWN_RUNTIME,
    PROCESS_TYPE,
    SPEC_TYPE,
    Supervisor,
    process,
    spec,
)

GVISOR_FLAGS = "--network=none --ignore-cgroups --platform=ptrace"


def gvisor(directory: Path) -> str:
    """A program that is gVisor's ``runsc`` with the flags it needs on a machine like this."""
    wrapper = directory / "runsc"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("runsc")} {GVISOR_FLAGS} "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


class Stdio:
    """FIFOs of one process, made and read as containerd's clients do it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.paths: dict[str, Any] = {name: str(directory / name) for name in ("stdin", "stdout", "stderr")}
        self._read: dict[str, bytearray] = {}
        self._threads: list[threading.Thread] = []
        for path in self.paths.values():
            os.mkfifo(path)
        for name in ("stdout", "stderr"):
            descriptor = os.open(self.paths[name], os.O_RDONLY | os.O_NONBLOCK)
            os.set_blocking(descriptor, True)
            self._read[name] = bytearray()
            self._threads.append(threading.Thread(target=self._follow, args=(name, descriptor), daemon=True))

    def begin(self) -> None:
        """The shim has opened its side: read until the end of file."""
        # For reading as well: a process that has ended by now has no reader to wait for.
        self.stdin = open(os.open(self.paths["stdin"], os.O_RDWR), "wb", buffering=0)  # noqa: SIM115 -- for its life
        for thread in self._threads:
            thread.start()

    def _follow(self, name: str, descriptor: int) -> None:
        with open(descriptor, "rb", buffering=0) as file:
            while data := file.read(65536):
                self._read[name] += data

    def seen(self, name: str) -> bytes:
        """What has come so far."""
        return bytes(self._read[name])

    def ended(self) -> bool:
        """Whether both streams have ended."""
        return not any(thread.is_alive() for thread in self._threads)


def create(
    daemon: Supervisor,
    id: str,
    arguments: list[str],
    stdio: Stdio,
    *,
    runtime: str = OWN_RUNTIME,
    binary: str = "",
    limits: dict[str, Any] | None = None,
) -> int:
    container = containers_pb2.Container(id=id)
    container.runtime.name = runtime
    if binary:
        options = runc_options_pb2.Options(binary_name=binary)
        packed = AnyMessage(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())
        container.runtime.options.CopyFrom(packed)
    document = {**spec(arguments), "ociVersion": "1.0.2"}
    document["linux"]["resources"] = limits or {}
    document["linux"]["cgroupsPath"] = f"/gantry/{daemon.host.base.name}-{id}"
    container.spec.CopyFrom(AnyMessage(type_url=SPEC_TYPE, value=json.dumps(document).encode()))
    request = containers_pb2.CreateContainerRequest(container=container)
    daemon.containers.Create(request, metadata=METADATA, timeout=CALL_SECONDS)
    layers = daemon.host.base / "layers" / id
    for name in ("upper", "work"):
        (layers / name).mkdir(parents=True)
    options_ = [f"lowerdir={daemon.lower}", f"upperdir={layers}/upper", f"workdir={layers}/work", "index=off"]
    rootfs = types_pb2.Mount(type="overlay", source="overlay", options=options_)
    task = tasks_pb2.CreateTaskRequest(container_id=id, rootfs=[rootfs], **stdio.paths)
    return daemon.tasks.Create(task, metadata=METADATA, timeout=60).pid


def call(daemon: Supervisor, method: str, request: Any) -> Any:
    return getattr(daemon.tasks, method)(request, metadata=METADATA, timeout=CALL_SECONDS)


def start_exec(daemon: Supervisor, id: str, exec_id: str, script: str, stdio: Stdio) -> None:
    """Start a process beside the container's."""
    value = json.dumps(process(["sh", "-c", script])).encode()
    packed = AnyMessage(type_url=PROCESS_TYPE, value=value)
    call(daemon, "Exec", tasks_pb2.ExecProcessRequest(container_id=id, exec_id=exec_id, spec=packed, **stdio.paths))
    call(daemon, "Start", tasks_pb2.StartRequest(container_id=id, exec_id=exec_id))
    stdio.begin()


def execute(daemon: Supervisor, id: str, exec_id: str, script: str, stdio: Stdio) -> int:
    """Run a process beside the container's; its exit status."""
    start_exec(daemon, id, exec_id, script, stdio)
    status: int = call(daemon, "Wait", tasks_pb2.WaitRequest(container_id=id, exec_id=exec_id)).exit_status
    deleted = call(daemon, "DeleteProcess", tasks_pb2.DeleteProcessRequest(container_id=id, exec_id=exec_id))
    assert deleted.exit_status == status
    return status
