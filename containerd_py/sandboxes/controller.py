"""The life of sandboxes (containerd's controller ``shim``): create, start, stop, shut down, and find them again.

Rule: a sandbox stops once, and the world is told once, whoever stopped it: what ends it is its shim's answer to
``WaitSandbox``, which is followed from its creation on. Its tasks end before it does. With a shim of ours each task
keeps a shim of its own, so that the death of one is nobody else's; with another shim its tasks are that shim's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from containerd_py.sandboxes.bundles import SandboxBundles
from containerd_py.sandboxes.sandbox import Record, Sandbox, load_record
from containerd_py.sandboxes.shims import SandboxShims
from containerd_py.tasks import foreign
from containerd_py.tasks.bundle import Bundle, Endpoint, ExitRecord
from containerd_py.tasks.manager import TaskManager
from containerd_py.tasks.recovery import CALL_SECONDS, UNKNOWN_STATUS, timestamp
from containerd_py.tasks.task import Task
from oci import errors
from oci.hostpaths import RUNTIME_NAME
from protos.containerd import event_types_pb2, shim_v2_pb2, types_pb2
from protos.containerd import shim_sandbox_pb2 as pb
from protos.sandbox_messages import NOT_READY, READY

SIGKILL = 9

_log = structlog.get_logger("containerd_py.sandboxes.controller")


class Wanted(NamedTuple):
    """What a sandbox is made of: the stored description, and what only its creation needs."""

    sandbox: types_pb2.Sandbox
    rootfs: Sequence[types_pb2.Mount] = ()
    options: AnyMessage | None = None
    netns: str = ""
    annotations: Mapping[str, str] = {}


class SandboxController:
    """Sandboxes by (namespace, id)."""

    def __init__(
        self,
        bundles: SandboxBundles,
        shims: SandboxShims,
        tasks: TaskManager,
        publish: Callable[[str, str, Message], None],
    ) -> None:
        self._bundles = bundles
        self._shims = shims
        self._tasks = tasks
        self._publish = publish
        self._sandboxes: dict[tuple[str, str], Sandbox] = {}
        shims.lost = self._bury
        tasks.join = self._join

    def _get(self, namespace: str, id: str) -> Sandbox:
        sandbox = self._sandboxes.get((namespace, id))
        if sandbox is None or not sandbox.whole:
            raise errors.NotFound(f"sandbox {id!r} in namespace {namespace!r}: not found")
        return sandbox

    def has(self, namespace: str, id: str) -> bool:
        """Whether there is such a sandbox, or will be in a moment."""
        return (namespace, id) in self._sandboxes

    async def create(self, namespace: str, wanted: Wanted) -> None:
        """Start a shim and let it make the sandbox. Nothing is left behind when that fails."""
        id = wanted.sandbox.sandbox_id
        bundle = self._bundles.bundle(namespace, id)
        if (namespace, id) in self._sandboxes:
            raise errors.AlreadyExists(f"sandbox {id!r}: already exists")
        runtime = wanted.sandbox.runtime.name or RUNTIME_NAME
        sandbox = Sandbox(bundle, Record(runtime, time.time_ns()), foreign.resolve(runtime))
        self._sandboxes[namespace, id] = sandbox
        await asyncio.shield(asyncio.ensure_future(self._make(sandbox, wanted)))

    async def _make(self, sandbox: Sandbox, wanted: Wanted) -> None:
        runtime = wanted.sandbox.runtime
        request = pb.CreateSandboxRequest(
            sandbox_id=sandbox.id,
            bundle_path=sandbox.bundle.path,
            rootfs=wanted.rootfs,
            options=wanted.options,
            netns_path=wanted.netns,
            annotations=wanted.annotations,
        )
        try:
            sandbox.bundle.create(wanted.sandbox.spec.value or b"{}")
            sandbox.save()
            await self._shims.start(sandbox, runtime.options if runtime.HasField("options") else None)
            await sandbox.call("CreateSandbox", request, pb.CreateSandboxResponse)
        except BaseException as error:
            await self._remove(sandbox)
            if isinstance(error, errors.Unimplemented) and not sandbox.own:
                hint = f"runtime {RUNTIME_NAME} has it"
                raise errors.Unimplemented(f"runtime {sandbox.record.runtime}: {error}", hint=hint) from error
            raise
        self._adopt(sandbox)
        event = event_types_pb2.SandboxCreate(sandbox_id=sandbox.id)
        self._publish(sandbox.namespace, "/sandboxes/create", event)

    def _adopt(self, sandbox: Sandbox) -> None:
        sandbox.whole = True
        self._sandboxes[sandbox.namespace, sandbox.id] = sandbox
        sandbox.follower = asyncio.get_running_loop().create_task(self._follow(sandbox))

    async def _remove(self, sandbox: Sandbox) -> None:
        try:
            await self._shims.end(sandbox)
        finally:
            if self._sandboxes.get((sandbox.namespace, sandbox.id)) is sandbox:
                del self._sandboxes[sandbox.namespace, sandbox.id]

    async def _follow(self, sandbox: Sandbox) -> None:
        """Wait for the end of a sandbox."""
        request = pb.WaitSandboxRequest(sandbox_id=sandbox.id)
        try:
            answer = await sandbox.call("WaitSandbox", request, pb.WaitSandboxResponse)
        except errors.Unavailable:
            return  # the shim is gone for good: ``_bury`` knows
        except errors.GantryError as error:
            _log.error("sandbox not followed", namespace=sandbox.namespace, id=sandbox.id, error=str(error))
            return
        if answer.HasField("exited_at"):
            self._finish(sandbox, ExitRecord(0, answer.exit_status, answer.exited_at.ToNanoseconds()))
        # Else a shim that does not wait (containerd's of 1.7): the sandbox ends with a stop, or with its shim.

    def _bury(self, sandbox: Sandbox) -> None:
        """A sandbox whose shim is not ours was stopped, or went with its shim."""
        status = 0 if sandbox.stopping else UNKNOWN_STATUS
        self._finish(sandbox, ExitRecord(0, status, time.time_ns()))

    def _finish(self, sandbox: Sandbox, record: ExitRecord) -> None:
        if sandbox.ended.done():
            return
        sandbox.ended.set_result(record)
        event = event_types_pb2.SandboxExit(
            sandbox_id=sandbox.id, exit_status=record.exit_status, exited_at=timestamp(record.exited_at)
        )
        self._publish(sandbox.namespace, "/sandboxes/exit", event)
        sandbox.bundle.write_exit_record(record)  # after the event: it may be told twice, never not at all

    async def start(self, namespace: str, id: str) -> tuple[pb.StartSandboxResponse, Endpoint]:
        """Start a created sandbox: the shim's answer, and where tasks find the shim. One that fails is removed."""
        sandbox = self._get(namespace, id)
        if sandbox.ended.done():
            raise errors.FailedPrecondition(f"sandbox {id!r} has stopped", hint="shut it down and create another")
        if sandbox.record.started_at:
            raise errors.FailedPrecondition(f"sandbox {id!r} is already started")
        request = pb.StartSandboxRequest(sandbox_id=id)
        try:
            answer = await sandbox.call("StartSandbox", request, pb.StartSandboxResponse)
        except errors.FailedPrecondition:
            # A shim that was lost after it had started the sandbox was asked again.
            state = await self._state(sandbox, verbose=False)
            if state.state != READY:
                raise
            answer = pb.StartSandboxResponse(pid=state.pid, created_at=state.created_at)
        except errors.GantryError:
            await self._remove(sandbox)
            raise
        if not answer.HasField("created_at"):
            answer.created_at.CopyFrom(timestamp(sandbox.record.created_at))
        sandbox.record.started_at = time.time_ns()
        sandbox.save()
        self._publish(namespace, "/sandboxes/start", event_types_pb2.SandboxStart(sandbox_id=id))
        assert sandbox.endpoint is not None
        return answer, sandbox.endpoint

    async def platform(self, namespace: str, id: str) -> types_pb2.Platform:
        """What the sandbox's tasks run on."""
        request = pb.PlatformRequest(sandbox_id=id)
        return (await self._get(namespace, id).call("Platform", request, pb.PlatformResponse)).platform

    async def stop(self, namespace: str, id: str, seconds: int = 0) -> None:
        """Kill the sandbox's tasks, then stop it. Stopping what is not there (any more) is no error.

        Raises ``DeadlineExceeded`` after ``seconds``, where given; the stop goes on then.
        """
        sandbox = self._sandboxes.get((namespace, id))
        if sandbox is None or not sandbox.whole or sandbox.ended.done():
            return
        stopping = asyncio.ensure_future(self._stop(sandbox))
        try:
            await asyncio.wait_for(asyncio.shield(stopping), seconds or None)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"sandbox {id!r} did not stop within {seconds} s") from None

    async def _stop(self, sandbox: Sandbox) -> None:
        sandbox.stopping = True
        await asyncio.gather(*map(_ended, await self._tasks.members(sandbox.namespace, sandbox.id)))
        request = pb.StopSandboxRequest(sandbox_id=sandbox.id)
        try:
            await sandbox.call("StopSandbox", request, pb.StopSandboxResponse)
        except (errors.NotFound, errors.Unavailable) as error:
            _log.info("shim gone before it stopped its sandbox", id=sandbox.id, error=str(error))
        if sandbox.own:
            await asyncio.shield(sandbox.ended)
        else:
            self._bury(sandbox)

    async def wait(self, namespace: str, id: str) -> ExitRecord:
        """How the sandbox ended, once it has. Raises ``NotFound``."""
        return await asyncio.shield(self._get(namespace, id).ended)

    async def status(self, namespace: str, id: str, *, verbose: bool) -> tuple[pb.SandboxStatusResponse, Endpoint]:
        """The shim's answer; what is left of it when there is no shim any more. Raises ``NotFound``."""
        sandbox = self._get(namespace, id)
        answer = await self._state(sandbox, verbose=verbose)
        answer.sandbox_id = answer.sandbox_id or id
        if not answer.HasField("created_at"):
            answer.created_at.CopyFrom(timestamp(sandbox.record.created_at))
        if sandbox.ended.done() and not answer.HasField("exited_at"):
            answer.exited_at.CopyFrom(timestamp(sandbox.ended.result().exited_at))
        if not answer.state:
            answer.state = READY if sandbox.record.started_at and not sandbox.ended.done() else NOT_READY
        if verbose:
            tasks = (task.id for task in self._tasks.list(namespace) if task.sandbox == id)
            answer.info["tasks"] = " ".join(sorted(tasks))
        return answer, sandbox.endpoint or Endpoint(0, "")

    @staticmethod
    async def _state(sandbox: Sandbox, *, verbose: bool) -> pb.SandboxStatusResponse:
        request = pb.SandboxStatusRequest(sandbox_id=sandbox.id, verbose=verbose)
        try:
            return await sandbox.call("SandboxStatus", request, pb.SandboxStatusResponse)
        except errors.Unavailable:
            if not sandbox.ended.done():
                raise
            return pb.SandboxStatusResponse()

    async def metrics(self, namespace: str, id: str) -> types_pb2.Metric:
        """The shim's statistics; the sum of its tasks' where it has none."""
        sandbox = self._get(namespace, id)
        request = pb.SandboxMetricsRequest(sandbox_id=id)
        with contextlib.suppress(errors.Unimplemented):  # what containerd's shim of 1.7 answers
            answer = (await sandbox.call("SandboxMetrics", request, pb.SandboxMetricsResponse)).metrics
            if answer.HasField("data"):
                return answer
        found = await asyncio.gather(*map(_statistics, await self._tasks.members(namespace, id)))
        from protos.cgroup_sums import add_up

        total = add_up([{"type_url": data.type_url, "value": data.value} for data in found if data is not None])
        data = AnyMessage(**total) if total is not None else None
        return types_pb2.Metric(timestamp=timestamp(time.time_ns()), id=id, data=data)

    async def shutdown(self, namespace: str, id: str) -> None:
        """Stop the sandbox, end its shim and forget it. Raises ``NotFound``. Goes on without its caller."""
        sandbox = self._get(namespace, id)
        if sandbox.removal is None or sandbox.removal.done():
            sandbox.removal = asyncio.ensure_future(self._shut_down(sandbox))
        await asyncio.shield(sandbox.removal)

    async def _shut_down(self, sandbox: Sandbox) -> None:
        if not sandbox.ended.done():
            await self._stop(sandbox)
        await self._remove(sandbox)
        if not sandbox.ended.done():
            self._bury(sandbox)

    def _join(self, namespace: str, id: str) -> Endpoint | None:
        """Where the shim of a sandbox listens that a task is to join; None for a name that is not ours.

        Raises ``FailedPrecondition`` unless it runs.
        """
        sandbox = self._sandboxes.get((namespace, id))
        if sandbox is None:
            return None
        if not sandbox.whole or not sandbox.record.started_at or sandbox.stopping or sandbox.ended.done():
            raise errors.FailedPrecondition(f"sandbox {id!r} does not run: no task can join it")
        return sandbox.endpoint

    async def load(self) -> None:
        """Find the sandboxes of an earlier life of this daemon; what was not whole is swept."""
        found = list(self._bundles.scan())
        for bundle, result in zip(
            found, await asyncio.gather(*map(self._load, found), return_exceptions=True), strict=True
        ):
            if isinstance(result, BaseException):
                _log.error("sandbox not loaded", namespace=bundle.namespace, id=bundle.id, error=str(result))

    async def _load(self, bundle: Bundle) -> None:
        record = load_record(bundle)
        program = (bundle.read(foreign.SHIM_BINARY_PATH) or b"").decode()
        sandbox = Sandbox(
            bundle, record or Record(program or RUNTIME_NAME, 0), (program,) if program else foreign.OWN_PROGRAM
        )
        ended = bundle.exit_record()
        if ended is not None:
            sandbox.ended.set_result(ended)
        try:
            there = record is not None and await self._shims.find(sandbox)
        except errors.NotFound:
            there = False
        if there or ended is not None:
            self._adopt(sandbox)
        elif record is not None and record.started_at:
            self._adopt(sandbox)
            self._bury(sandbox)
        else:
            _log.warning("sweeping a sandbox that was not whole", namespace=bundle.namespace, id=bundle.id)
            await self._shims.end(sandbox)

    def close(self) -> None:
        """Let go of every shim; all of them go on."""
        for sandbox in self._sandboxes.values():
            sandbox.close()

    def list(self) -> Iterable[Sandbox]:
        """All sandboxes."""
        return tuple(sandbox for sandbox in self._sandboxes.values() if sandbox.whole)


async def _ended(task: Task) -> None:
    """Kill a task and see its end; a shim that goes with its sandbox leaves the exit on record."""
    kill = shim_v2_pb2.KillRequest(id=task.id, signal=SIGKILL, all=True)
    with contextlib.suppress(errors.NotFound, errors.FailedPrecondition):
        await task.call("Kill", kill, Empty)
    with contextlib.suppress(errors.NotFound, errors.FailedPrecondition):
        answer = await task.call("Wait", shim_v2_pb2.WaitRequest(id=task.id), shim_v2_pb2.WaitResponse)
        if task.shares_shim:
            task.bundle.write_exit_record(ExitRecord(task.pid, answer.exit_status, answer.exited_at.ToNanoseconds()))


async def _statistics(task: Task) -> AnyMessage | None:
    """A task's statistics; None when it has none (any more)."""
    try:
        answer = await task.call(
            "Stats", shim_v2_pb2.StatsRequest(id=task.id), shim_v2_pb2.StatsResponse, seconds=CALL_SECONDS
        )
    except errors.GantryError:
        return None
    return answer.stats
