"""The table of tasks and their life cycle: create, delete, and finding them again after a restart.

Rule: a task is in the table from the moment its bundle is made until the bundle is gone; every step in between can be
killed, and ``load`` at the next start finishes or undoes it from what lies in the bundle directory.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage

from containerd_py.checkpoints import Restore
from containerd_py.interfaces import ContainerStore, Scope
from containerd_py.tasks import foreign
from containerd_py.tasks.bundle import Bundle, BundleStore, Endpoint, ExitRecord
from containerd_py.tasks.recovery import CALL_SECONDS, Recovery, ShimStarter
from containerd_py.tasks.shim_client import ShimClient
from containerd_py.tasks.task import Task
from oci import errors
from oci.hostpaths import RUNTIME_NAME
from protos.containerd import containers_pb2, shim_v2_pb2, tasks_pb2

LOADS_AT_ONCE = 32

SWEEP_SECONDS = (0.1, 0.5, 2.0, 5.0)
"""Pauses between the attempts to sweep what could not be undone; the last one repeats."""

SWEPT_SECONDS = 20.0
"""How long a create waits for the remains of an earlier one."""

SANDBOX = "sandbox"
"""The bundle's file that names the task's sandbox."""

R = TypeVar("R")

_log = structlog.get_logger("containerd_py.tasks.manager")


class Found(enum.Enum):
    """What answered where a bundle's shim should listen."""

    TASK = enum.auto()
    SHIM = enum.auto()
    """A shim that has no such task: it was never created or is deleted already."""
    NOTHING = enum.auto()


class TaskManager:
    """Tasks by (namespace, id)."""

    def __init__(
        self,
        bundles: BundleStore,
        containers: ContainerStore,
        zygote: ShimStarter,
        recovery: Recovery,
        daemon: foreign.Daemon,
    ) -> None:
        self._bundles = bundles
        self._containers = containers
        self._zygote = zygote
        self._recovery = recovery
        self._daemon = daemon
        recovery.vanished = self._forget
        self.join: Callable[[str, str], Endpoint | None] = lambda namespace, sandbox: None
        """Where the shim of a running sandbox listens; None for one that is nobody's business here. May refuse."""
        self._tasks: dict[tuple[str, str], Task] = {}

    def get(self, namespace: str, id: str) -> Task:
        """A created task. Raises ``NotFound``."""
        task = self._tasks.get((namespace, id))
        if task is None or not task.created:
            raise errors.NotFound(f"task {id} not found")
        return task

    def list(self, namespace: str) -> list[Task]:
        """The namespace's created tasks, oldest first."""
        return [task for (where, _), task in self._tasks.items() if where == namespace and task.created]

    async def members(self, namespace: str, sandbox: str) -> Sequence[Task]:
        """The created tasks of a sandbox; those that are being created are waited for."""
        found = [task for task in self._tasks.values() if (task.namespace, task.sandbox) == (namespace, sandbox)]
        making = [task.making for task in found if not task.created and task.making is not None]
        if making:
            await asyncio.wait(making)
        return [task for task in found if task.created and not task.deleting]

    def namespaces(self) -> set[str]:
        """Namespaces that have tasks."""
        return {namespace for namespace, _ in self._tasks}

    async def create(
        self, namespace: str, request: tasks_pb2.CreateTaskRequest, restore: Restore | None = None
    ) -> Task:
        """Make the bundle, start the shim and let it create the container, of a checkpoint where ``restore`` has one.

        Raises ``NotFound`` (container, runtime), ``AlreadyExists`` (task) and whatever the shim says; nothing is left
        behind then.
        """
        id = request.container_id
        container = self._containers.get(Scope(namespace), id)
        await self._swept(namespace, id)
        if (namespace, id) in self._tasks:
            raise errors.AlreadyExists(f"task {id}: already exists")
        runtime = request.runtime_path or container.runtime.name or RUNTIME_NAME
        task = Task(self._bundles.bundle(namespace, id), runtime, foreign.resolve(runtime))
        shared = self._joined(task, container.sandbox) if container.sandbox else None
        self._tasks[namespace, id] = task
        task.making = _begun(self._make(task, container, request, restore, shared))
        return await asyncio.shield(task.making)

    def _joined(self, task: Task, sandbox: str) -> Endpoint | None:
        """Make the task the sandbox's, if that is one of ours; where its shim listens, for a task that shares it."""
        endpoint = self.join(task.namespace, sandbox)
        if endpoint is None:
            return None
        task.sandbox = sandbox
        return None if task.own else endpoint

    async def _make(
        self,
        task: Task,
        container: containers_pb2.Container,
        request: tasks_pb2.CreateTaskRequest,
        restore: Restore | None,
        shared: Endpoint | None,
    ) -> Task:
        """Make the task; once more when only the shim's death was in the way. A caller that leaves stops nothing."""
        runtime_options = container.runtime.options if container.runtime.HasField("options") else None
        again = task.own
        while True:
            try:
                task.bundle.create(container.spec.value)
                checkpoint = await restore(f"{task.bundle.path}/checkpoint") if restore is not None else ""
                if task.sandbox:
                    task.bundle.write(SANDBOX, task.sandbox.encode())
                await self._start_shim(task, runtime_options, shared)
                await self._create_in_shim(task, request, runtime_options, checkpoint)
            except Exception:
                lost = task.shim_pid > 0 and (task.client is None or task.client.closed.done())
                if not await self._undone(task):
                    raise
                if not (again and lost):
                    self._forget(task)
                    raise
                _log.warning("shim lost in a create, trying again", namespace=task.namespace, id=task.id)
                again, task.deleting, task.shim_pid = False, False, 0
            else:
                task.created = True
                return task

    async def _start_shim(self, task: Task, options: AnyMessage | None, shared: Endpoint | None) -> None:
        if task.own:
            path = self._bundles.shim_socket(task.namespace, task.id)
            launched = await self._zygote.start(task.namespace, task.id, task.bundle.path, path)
            task.shim_pid = launched.pid
            client = await ShimClient.connect(task.namespace, launched.address, launched.version)
        else:
            task.bundle.write(foreign.SHIM_BINARY_PATH, task.program[0].encode())
            if shared is None:
                task.log = foreign.ShimLog(task.bundle)
                endpoint = await foreign.start(task.program, task.bundle, options, self._daemon)
            else:
                endpoint = shared
                task.bundle.write("bootstrap.json", msgspec.json.encode(endpoint))
            client = await ShimClient.connect(task.namespace, endpoint.address, endpoint.version)
        self._recovery.watch(task, client)

    async def _create_in_shim(
        self,
        task: Task,
        request: tasks_pb2.CreateTaskRequest,
        runtime_options: AnyMessage | None,
        checkpoint: str,
    ) -> None:
        message = shim_v2_pb2.CreateTaskRequest(
            id=task.id,
            bundle=task.bundle.path,
            rootfs=request.rootfs,
            terminal=request.terminal,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            checkpoint=checkpoint,
        )
        options = request.options if request.options.value else runtime_options
        if options is not None:
            message.options.CopyFrom(options)
        answer = await task.call("Create", message, shim_v2_pb2.CreateTaskResponse)
        task.pid = answer.pid

    async def _undone(self, task: Task) -> bool:
        """Take back a create that failed; what cannot be taken back now is swept later, and in the way until then."""
        try:
            await self._recovery.destroy(task)
        except (errors.GantryError, OSError) as error:
            _log.error("not undone yet", namespace=task.namespace, id=task.id, error=str(error))
            self._sweep_later(task)
            return False
        return True

    def _sweep_later(self, task: Task) -> None:
        self._tasks[task.namespace, task.id] = task
        task.created, task.making = False, _begun(self._sweep(task))

    async def _sweep(self, task: Task) -> None:
        for pause in itertools.chain(SWEEP_SECONDS, itertools.repeat(SWEEP_SECONDS[-1])):
            await asyncio.sleep(pause)
            try:
                await self._recovery.destroy(task)
            except (errors.GantryError, OSError) as error:
                _log.error("remains not swept", namespace=task.namespace, id=task.id, error=str(error))
            else:
                self._forget(task)
                return

    async def _swept(self, namespace: str, id: str) -> None:
        """Wait until the remains of an earlier task of that name are gone."""
        task = self._tasks.get((namespace, id))
        if task is not None and not task.created and task.deleting and task.making is not None:
            await asyncio.wait((task.making,), timeout=SWEPT_SECONDS)

    def _forget(self, task: Task) -> None:
        if self._tasks.get((task.namespace, task.id)) is task:
            del self._tasks[task.namespace, task.id]

    async def delete(self, namespace: str, id: str) -> ExitRecord:
        """Delete an ended (or never started) container with all that belongs to it; how it ended.

        One that is being created is waited for. A deletion goes on to its end without its caller, and is shared by all
        who ask for it. Raises ``FailedPrecondition`` while the container runs.
        """
        unfinished = self._tasks.get((namespace, id))
        if unfinished is not None and not unfinished.created and unfinished.making is not None:
            await asyncio.wait((unfinished.making,))
        task = self.get(namespace, id)
        if task.deletion is None or task.deletion.done():
            task.deletion = _begun(self._delete(task))
        return await asyncio.shield(task.deletion)

    async def _delete(self, task: Task) -> ExitRecord:
        record = await self._delete_in_shim(task)
        task.deleting = True
        try:
            await self._dispose(task)
        except BaseException:
            # Still in the table: a second Delete tries again.
            task.deleting, task.final = False, record
            raise
        return record

    async def _delete_in_shim(self, task: Task) -> ExitRecord:
        """The runtime's part of a delete; without a shim one is started for it."""
        known = task.final or task.bundle.exit_record()
        if task.final is not None and task.client is None:
            if task.own:
                await self._clean_without_shim(task)
            return task.final
        request = shim_v2_pb2.DeleteRequest(id=task.id)
        try:
            answer = await task.call("Delete", request, shim_v2_pb2.DeleteResponse)
        except errors.NotFound:
            # The shim had deleted it before this daemon or the connection died.
            if known is None:
                raise
            return known
        except errors.FailedPrecondition:
            if task.client is not None or task.final is None:
                raise
            return task.final  # its shim ended meanwhile, with its sandbox
        return ExitRecord(answer.pid, answer.exit_status, answer.exited_at.ToNanoseconds())

    async def _clean_without_shim(self, task: Task) -> None:
        try:
            await foreign.delete(task.program, task.bundle, self._daemon)
        except errors.GantryError as error:
            _log.error("runtime state not removed", namespace=task.namespace, id=task.id, error=str(error))

    async def _dispose(self, task: Task) -> None:
        client = task.client
        if client is None:
            await self._recovery.drop(task)
        else:
            await asyncio.gather(self._recovery.shut_down(task, client), self._recovery.drop(task))
        self._recovery.forget(task)
        self._forget(task)

    async def load(self) -> None:
        """Find the tasks of an earlier life of this daemon. Sweeps what was being made or removed when it died."""
        limit = asyncio.Semaphore(LOADS_AT_ONCE)

        async def one(bundle: Bundle) -> None:
            async with limit:
                await self._load(bundle)

        bundles = list(self._bundles.scan())
        for bundle, result in zip(
            bundles, await asyncio.gather(*map(one, bundles), return_exceptions=True), strict=True
        ):
            if isinstance(result, BaseException):
                _log.error("task not loaded", namespace=bundle.namespace, id=bundle.id, error=str(result))
        self._bundles.sweep_sockets({self._bundles.shim_socket(b.namespace, b.id) for b in bundles})

    async def _load(self, bundle: Bundle) -> None:
        program = (bundle.read(foreign.SHIM_BINARY_PATH) or b"").decode()
        task = Task(bundle, program or RUNTIME_NAME, (program,) if program else foreign.OWN_PROGRAM)
        task.pid = bundle.init_pid()
        task.sandbox = (bundle.read(SANDBOX) or b"").decode()
        if not task.own and not task.sandbox:
            task.log = foreign.ShimLog(bundle)
        found = await self._reconnect(task)
        if found is Found.TASK:
            self._adopt(task)
        elif found is Found.NOTHING and self._was_made(task):
            self._adopt(task)
            # The usual case ends at once; a stubborn one goes on in the background and its callers wait.
            await asyncio.wait((self._recovery.begin(task),), timeout=CALL_SECONDS)
        else:
            _log.warning("sweeping a task that was not whole", namespace=bundle.namespace, id=bundle.id)
            await self._undone(task)

    @staticmethod
    def _was_made(task: Task) -> bool:
        """Whether the shim had come so far that there is a container to take over."""
        if task.own:
            return task.bundle.read("options.json") is not None and task.bundle.read("processes/init") is not None
        return task.pid > 0 or task.bundle.exit_record() is not None

    def _adopt(self, task: Task) -> None:
        task.created = True
        self._tasks[task.namespace, task.id] = task

    async def _reconnect(self, task: Task) -> Found:
        """Connect to the shim that served the task and ask it for the task."""
        endpoint = task.bundle.endpoint()
        address = self._bundles.shim_socket(task.namespace, task.id) if task.own else ""
        version = 2
        if endpoint is not None:
            address, version = endpoint.address, endpoint.version
        client: ShimClient | None = None
        try:
            async with asyncio.timeout(CALL_SECONDS):
                client = await ShimClient.connect(task.namespace, address, version)
                self._recovery.watch(task, client)
                request = shim_v2_pb2.StateRequest(id=task.id)
                state = await client.call("State", request, shim_v2_pb2.StateResponse)
        except errors.NotFound:
            return Found.SHIM
        except (OSError, TimeoutError, errors.Unavailable) as error:
            _log.warning("no shim answers", namespace=task.namespace, id=task.id, address=address, error=str(error))
            if client is not None:
                client.close()
            task.client = None
            return Found.NOTHING
        task.pid = state.pid or task.pid
        return Found.TASK

    def close(self) -> None:
        """Let go of every shim; all of them go on."""
        for task in self._tasks.values():
            task.close()

    def init_pids(self) -> Sequence[int]:
        """Pids of all containers' first processes."""
        return [task.pid for task in self._tasks.values() if task.pid > 0]


def _begun(job: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
    """``job`` as a task whose failure nobody needs to ask for."""
    task = asyncio.get_running_loop().create_task(job)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
