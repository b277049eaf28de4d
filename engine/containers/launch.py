"""Starting a container: network and task are made side by side, and a start that fails is undone whole.

Rule: whoever starts holds the machine's lock from the first step to the last, so an exit that comes at once is told
after the start. The order is namespace, task ‖ network, process (docs: design of the run path). From ``starting`` on,
which is on disk, nothing is undone before it is known that the program has not run: an answer that was lost is no
failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable
from typing import Any

import msgspec
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.field_mask_pb2 import FieldMask

from engine.backend import translated
from engine.calls import Absent
from engine.containers import creation
from engine.containers.config import CreateBody
from engine.containers.discarding import discard, discard_task
from engine.containers.machine import ExitStatus, Machine
from engine.containers.model import Container, SpecRequest
from engine.containers.registry import Registry
from engine.containers.starterrors import translated_start, unknown_if_zero
from engine.containers.subpaths import Subpaths
from engine.defaults import OWN_RUNTIME
from engine.interfaces import SandboxFiles, SandboxRequest
from engine.spec import build_spec
from oci.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    GantryError,
    Internal,
    NotFound,
    Unavailable,
)
from oci.hostpaths import RUNTIME_NAME
from protos.containerd import containers_pb2, runc_options_pb2, task_types_pb2, tasks_pb2, types_pb2
from protos.rawlog import STREAM_NAMES

log = structlog.get_logger()

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
LABEL = "io.gantry.engine"
"""On every containerd record the engine makes, so that a sweep knows its own."""

SIGKILL = 9
KNOWN_SECONDS = 60.0
"""How long it may take to find out what became of a start whose answer was lost."""

UNDO_SECONDS = 30.0
KNOWN_PAUSE = 0.05
UNDO_PAUSES = (0.0, 0.05, 0.2, 1.0, 2.0)
"""Seconds before a task is created again that was in the way or of which nothing came."""


class StartUnknown(Unavailable):
    """The program was told to run, and nobody can tell yet whether it does."""


def sandbox_request(doc: Container) -> SandboxRequest:
    """What the network layer is told about ``doc``."""
    return creation.sandbox_request(doc.id, doc.name, CreateBody(doc.config, doc.host, doc.networking))


class Launcher:
    """Starts machines. The caller has checked that the container may start and holds its lock."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def start(self, machine: Machine) -> None:
        """Run the container; raises in Docker's words, with the exit code on the document, after undoing all."""
        machine.cancel_restart()
        machine.log_start = log_sizes(self._registry.log_directory(machine.id))
        machine.begin_run()
        try:
            pid = await self._launch(machine)
        except StartUnknown:
            raise
        except BaseException as error:
            await asyncio.shield(self._undo(machine, discarding=not isinstance(error, Absent)))
            raise self._failed(machine, error) from error
        self._running(machine, pid)

    async def _launch(self, machine: Machine) -> int:
        registry = self._registry
        for name in volume_names(machine.doc):
            await registry.volumes.use(name, machine.id)
        request = self._resolved(machine)
        netns, mounts = await asyncio.gather(registry.networks.open_sandbox(request), registry.rootfs(machine))
        connecting = asyncio.ensure_future(registry.networks.connect(request))
        try:
            directory = registry.directory(machine.id)
            prepare_files(machine.doc, directory)
            asked = await self._spec_request(machine, netns, request)
            with Subpaths(asked.container.mounts, registry.subpaths) as points:
                container = msgspec.structs.replace(asked.container, mounts=points)
                spec = build_spec(msgspec.structs.replace(asked, container=container))
                await self._record(machine, msgspec.json.encode(spec))
                await self._create_task(machine, mounts)
            machine.task_created()
            write_network_files(directory, await networked(connecting))
            machine.update(starting=True)
            return await self._start_task(machine.id)
        except BaseException:
            connecting.cancel()
            # A connect that is under way undoes itself before it ends.
            await asyncio.gather(connecting, return_exceptions=True)
            raise

    def _resolved(self, machine: Machine) -> SandboxRequest:
        """What is asked of the network: ``container:<name>`` by id, with the host name of that container."""
        request = sandbox_request(machine.doc)
        kind, separator, reference = request.mode.partition(":")
        if kind != "container" or not separator:
            return request
        donor = self._other(reference, "network")
        config = machine.doc.config
        if config.hostname != donor.config.hostname:
            config = msgspec.structs.replace(config, hostname=donor.config.hostname, domainname=donor.config.domainname)
            machine.update(config=config)
        return msgspec.structs.replace(request, mode=f"container:{donor.id}", hostname=donor.config.hostname)

    def _other(self, reference: str, what: str) -> Container:
        """The running container whose ``what`` namespace is to be joined."""
        doc = self._registry.find(reference).doc
        if not doc.state.alive:
            raise FailedPrecondition(f"cannot join {what} namespace of a non running container: {doc.id}")
        return doc

    async def _spec_request(self, machine: Machine, netns: str | None, request: SandboxRequest) -> SpecRequest:
        doc = self._placed(self._linked(machine.doc, request))
        paths = {
            kind: self._namespace(mode, kind)
            for kind, mode in (("pid", doc.host.pid_mode), ("ipc", doc.host.ipc_mode), ("uts", doc.host.uts_mode))
        }
        return SpecRequest(
            container=doc,
            rootfs=machine.rootfs or (),
            files=self._registry.directory(doc.id),
            netns=netns,
            pid_ns=paths["pid"],
            ipc_ns=paths["ipc"],
            uts_ns=paths["uts"],
            shm_path=await self._shm(doc),
        )

    def _placed(self, doc: Container) -> Container:
        """``doc`` below the daemon's cgroup, unless it says where it belongs; clients see what they asked for."""
        parent = doc.host.cgroup_parent or self._registry.cgroup_parent
        return msgspec.structs.replace(doc, host=msgspec.structs.replace(doc.host, cgroup_parent=parent))

    def _linked(self, doc: Container, request: SandboxRequest) -> Container:
        """``doc`` with the variables of its ``--link`` containers before its own."""
        if not request.links:
            return doc
        machines = self._registry.machines
        added = self._registry.networks.link_environment(request, lambda other: machines[other].doc.config.env or ())
        config = msgspec.structs.replace(doc.config, env=(*added, *(doc.config.env or ())))
        return msgspec.structs.replace(doc, config=config)

    def _namespace(self, mode: str, kind: str) -> str | None:
        if not mode.startswith("container:"):
            return None
        return f"/proc/{self._other(mode.partition(':')[2], kind.upper()).state.pid}/ns/{kind}"

    async def _shm(self, doc: Container) -> str | None:
        """The host directory for ``/dev/shm``: a shareable container's own, or that of the one whose IPC is joined."""
        if doc.host.ipc_mode == "shareable":
            return await self._registry.shm.open(doc.id, doc.host.shm_size)
        if not doc.host.ipc_mode.startswith("container:"):
            return None
        other = self._other(doc.host.ipc_mode.partition(":")[2], "IPC")
        if other.host.ipc_mode != "shareable":
            raise FailedPrecondition(
                f"cannot join IPC of container {other.id}: non-shareable IPC "
                "(hint: use IpcMode:shareable for the donor container)"
            )
        return self._registry.shm.path(other.id)

    async def _record(self, machine: Machine, spec: bytes) -> None:
        """Containerd's record of the container, with the spec of this run."""
        if machine.recorded and machine.recorded_spec == spec:
            return
        doc = machine.doc
        container = containers_pb2.Container(
            id=doc.id,
            labels={LABEL: "container"},
            image=doc.config.image,
            runtime=runtime(self._registry.defaults.binary(doc.host.runtime)),
            spec=AnyMessage(type_url=SPEC_TYPE, value=spec),
            snapshotter=doc.snapshotter,
            snapshot_key=doc.id,
        )
        containers, later = self._registry.backend.containers, self._registry.backend.later
        try:
            with translated():
                if not machine.recorded:
                    await containers.Create(containers_pb2.CreateContainerRequest(container=container), metadata=later)
        except AlreadyExists:
            machine.recorded = True  # by a create that the supervisor did not live to answer
        if machine.recorded:
            request = containers_pb2.UpdateContainerRequest(container=container, update_mask=FieldMask(paths=["spec"]))
            with translated():
                await containers.Update(request, metadata=later)
        machine.recorded, machine.recorded_spec = True, spec

    async def _create_task(self, machine: Machine, mounts: Any) -> None:
        doc = machine.doc
        attach = self._registry.attach_socket(doc.id)
        output = f"rawlog://{self._registry.log_directory(doc.id)}?attach={attach}"
        once = "?once=1" if doc.config.stdin_once else ""
        request = tasks_pb2.CreateTaskRequest(
            container_id=doc.id,
            rootfs=[types_pb2.Mount(type=m.type, source=m.source, options=m.options) for m in mounts],
            stdin=f"attach://{attach}{once}" if doc.config.open_stdin else "",
            stdout=output,
            stderr="" if doc.config.tty else output,
            terminal=doc.config.tty,
        )
        tasks = self._registry.backend.tasks
        for pause in UNDO_PAUSES:
            try:
                with translated():
                    await tasks.Create(request)
                return
            except Absent:
                raise
            except Unavailable:
                # The supervisor or the shim died in the middle; what the next one has of it may be whole.
                with contextlib.suppress(Unavailable, DeadlineExceeded):
                    process = await self._task(doc.id)
                    if process is not None and process.status == task_types_pb2.CREATED:
                        return
            except AlreadyExists:
                pass  # left by a start that an earlier engine did not live to finish, or just being taken back
            with contextlib.suppress(Unavailable, DeadlineExceeded):
                await discard_task(self._registry.backend, doc.id)
            await asyncio.sleep(pause)
        with translated():
            await tasks.Create(request)

    async def _start_task(self, container_id: str) -> int:
        """Let the created task run; its pid. Raises only when it has not run, or ``StartUnknown``."""
        tasks = self._registry.backend.tasks
        request = tasks_pb2.StartRequest(container_id=container_id)
        deadline = time.monotonic() + KNOWN_SECONDS
        while True:
            try:
                with translated():
                    return int((await tasks.Start(request)).pid)
            except (Unavailable, DeadlineExceeded):
                process = await self._known(container_id, deadline)
                if process is None:
                    raise  # there is nothing that could run
                if process.status != task_types_pb2.CREATED:
                    return int(process.pid)
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(KNOWN_PAUSE)

    async def _known(self, container_id: str, deadline: float) -> task_types_pb2.Process | None:
        """The container's task, as soon as anybody can tell; None when there is none. Raises ``StartUnknown``."""
        why = "its shim does not answer"
        while True:
            try:
                process = await self._task(container_id)
                if process is None or process.status != task_types_pb2.UNKNOWN:
                    return process
            except (Unavailable, DeadlineExceeded) as error:
                why = error.message
            if time.monotonic() > deadline:
                raise StartUnknown(
                    f"it is not known whether container {container_id} was started: {why}",
                    hint="the engine goes on asking; inspect tells once it is known",
                )
            await asyncio.sleep(KNOWN_PAUSE)

    async def settled(self, container_id: str) -> task_types_pb2.Process | None:
        """What became of a start that an earlier engine did not live to see answered; None when it did not happen.

        A task that was not told to run is taken back. Raises ``StartUnknown``.
        """
        deadline = time.monotonic() + KNOWN_SECONDS
        request = tasks_pb2.DeleteTaskRequest(container_id=container_id)
        while True:
            process = await self._known(container_id, deadline)
            if process is None or process.status != task_types_pb2.CREATED:
                return process
            # Who deletes only what was never started cannot hit a start that is still on its way.
            with contextlib.suppress(NotFound, FailedPrecondition, Unavailable, DeadlineExceeded), translated():
                await self._registry.backend.tasks.Delete(request, wait_for_ready=True, timeout=UNDO_SECONDS)
                return None
            await asyncio.sleep(KNOWN_PAUSE)

    async def settle(self, machine: Machine) -> bool:
        """Find out what became of a start that ended in ``StartUnknown``; whether it happened. Needs the lock."""
        while True:
            with contextlib.suppress(StartUnknown):
                process = await self._known(machine.id, time.monotonic() + KNOWN_SECONDS)
                break
        if process is not None and process.status != task_types_pb2.CREATED:
            self._running(machine, process.pid)
            return True
        await self._undo(machine)
        return False

    async def _task(self, container_id: str) -> task_types_pb2.Process | None:
        """The container's task; None when there is none. Raises ``Unavailable``, ``DeadlineExceeded``."""
        request = tasks_pb2.GetRequest(container_id=container_id)
        with contextlib.suppress(NotFound), translated():
            answer = await self._registry.backend.tasks.Get(request, wait_for_ready=True, timeout=UNDO_SECONDS)
            process: task_types_pb2.Process = answer.process
            return process
        return None

    def _running(self, machine: Machine, pid: int) -> None:
        state = msgspec.structs.replace(
            machine.doc.state,
            status="running",
            pid=pid,
            exit_code=0,
            error="",
            oom_killed=False,
            started_at=time.time_ns(),
        )
        machine.update(state=state, ever_started=True, starting=False)
        self._registry.publish(machine, "start")
        for hook in self._registry.started:
            hook(machine)

    def _failed(self, machine: Machine, error: BaseException) -> BaseException:
        """Note why the start failed; the error to raise for it."""
        if isinstance(error, OSError):
            error = Internal(
                f"failed to start container: {error.strerror or error}: {error.filename or ''}".rstrip(": ")
            )
        if not isinstance(error, GantryError):
            return error
        told, code = translated_start(error)
        state = msgspec.structs.replace(
            machine.doc.state, error=told.message, exit_code=unknown_if_zero(code), pid=0, finished_at=time.time_ns()
        )
        if machine.doc.state.status == "created":
            state = msgspec.structs.replace(state, finished_at=0)
        machine.update(state=state)
        machine.tell_exit(ExitStatus(state.exit_code, told.message))
        return told

    async def _undo(self, machine: Machine, *, discarding: bool = True) -> None:
        """Take back whatever a failed start made; without ``discarding`` a task is left to whoever comes next."""
        machine.not_starting()
        closing: list[Awaitable[None]] = [self._registry.networks.close_sandbox(machine.id)]
        if discarding:
            closing.append(discard(self._registry.backend, machine))
        else:
            machine.task_left = True
        steps = await asyncio.gather(*closing, return_exceptions=True)
        for problem in steps:
            if isinstance(problem, Exception):
                log.warning("a failed start was not undone wholly", container=machine.id, error=str(problem))
        for name in volume_names(machine.doc):
            await self._registry.volumes.release(name, machine.id)
        await self._registry.shm.close(machine.id)
        machine.end_run()


async def networked(connecting: asyncio.Future[SandboxFiles]) -> SandboxFiles:
    """The result of ``connect``; its failure in Docker's words."""
    try:
        return await connecting
    except GantryError as error:
        raise type(error)(f"failed to set up container networking: {error.message}", hint=error.hint) from error


def runtime(binary: str) -> containers_pb2.Container.Runtime:
    """Containerd's runtime for an OCI runtime: our shim with that program."""
    result = containers_pb2.Container.Runtime(name=RUNTIME_NAME)
    if binary != OWN_RUNTIME:
        options = runc_options_pb2.Options(binary_name=binary)
        result.options.CopyFrom(AnyMessage(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString()))
    return result


def volume_names(doc: Container) -> list[str]:
    """The volumes mounted into a container."""
    return [point.name for point in doc.mounts if point.type == "volume"]


def log_sizes(directory: str) -> tuple[int, int]:
    """Bytes of (stdout, stderr) in the raw log: where the output of the next run begins."""
    sizes = []
    for name in STREAM_NAMES.values():
        try:
            sizes.append(os.stat(f"{directory}/{name}").st_size)
        except FileNotFoundError:
            sizes.append(0)
    return sizes[0], sizes[1]


def prepare_files(doc: Container, directory: str) -> None:
    """The files that are bound into the container, so that they are there to be bound; contents follow."""
    os.makedirs(f"{directory}/log", mode=0o710, exist_ok=True)
    name = creation.hostname(doc.config, doc.host, doc.id)
    for file, content in (("hostname", f"{name}\n"), ("hosts", None), ("resolv.conf", None)):
        descriptor = os.open(f"{directory}/{file}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if content is not None:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, content.encode())
        os.close(descriptor)


def write_network_files(directory: str, files: SandboxFiles) -> None:
    """Fill in ``hosts`` and ``resolv.conf``: in place, because they are bound by inode."""
    for name, content in (("hosts", files.hosts), ("resolv.conf", files.resolv_conf)):
        with open(f"{directory}/{name}", "r+", encoding="utf-8") as file:
            file.truncate(0)
            file.write(content)
