"""Shims that went away: replace them, or find out how their container ended.

Rule: a container never ends because its shim did, and an exit status is never made up while any witness is left. The
witnesses, in order: the shim's exit record; a replacement shim (it holds the pidfd parked with the keeper); the zygote,
which inherits orphans; this process, which inherits the zygote's; and only then 137, said loudly.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Protocol

import structlog
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from containerd_py.tasks import foreign
from containerd_py.tasks.bundle import BundleStore, ExitRecord
from containerd_py.tasks.launcher import Launched
from containerd_py.tasks.shim_client import ShimClient
from containerd_py.tasks.task import Task
from oci import errors
from protos.containerd import event_types_pb2, shim_v2_pb2

RETRY_SECONDS = (0.0, 0.05, 0.25, 1.0, 2.0, 5.0)
"""Pauses before the attempts to replace a shim; the last one repeats while the container lives."""

DEAD_ATTEMPTS = 4
"""Attempts for a container that is dead already: a new shim would know best how it ended."""

CALL_SECONDS = 5.0
"""How long a shim that is being adopted may take to answer."""

UNKNOWN_STATUS = 137
"""Reported when nobody knows how a container ended: that of a process killed by SIGKILL, as containerd does."""

SIGKILL = 9

_log = structlog.get_logger("containerd_py.tasks.recovery")


class ShimStarter(Protocol):
    """What the zygote offers (``launcher.Zygote``)."""

    async def start(self, namespace: str, id: str, bundle: str, socket_path: str) -> Launched: ...

    async def restore(self, namespace: str, id: str, bundle: str, socket_path: str) -> Launched: ...

    async def reaped(self, pid: int) -> int | None: ...

    async def drop(self, namespace: str, id: str) -> None: ...


class Recovery:
    """Replaces shims and disposes of tasks whose shim is gone for good."""

    def __init__(
        self,
        bundles: BundleStore,
        zygote: ShimStarter,
        daemon: foreign.Daemon,
        publish: Callable[[str, str, event_types_pb2.TaskExit], None],
        reaped_here: Callable[[int], int | None],
    ) -> None:
        self._bundles = bundles
        self._zygote = zygote
        self._daemon = daemon
        self._publish = publish
        self._reaped_here = reaped_here
        self.vanished: Callable[[Task], None] = lambda task: None
        """Called when it turned out that there is no such container any more."""

    def watch(self, task: Task, client: ShimClient) -> None:
        """Make ``client`` the task's; when it is lost, recovery starts at once."""
        task.client = client
        task.changed()
        client.on_lost = lambda: self._lost(task, client)

    def _lost(self, task: Task, client: ShimClient) -> None:
        if task.client is not client:
            return
        task.client = None
        if task.deleting or not task.created:
            return
        _log.warning("shim lost", namespace=task.namespace, id=task.id, shim_pid=task.shim_pid)
        self.begin(task)

    def begin(self, task: Task) -> asyncio.Task[None]:
        """Recover the task in the background; its callers wait for that."""

        def ended(recovery: asyncio.Task[None]) -> None:
            if not recovery.cancelled() and (error := recovery.exception()) is not None:
                _log.error("recovery failed", namespace=task.namespace, id=task.id, exc_info=error)

        task.recovery = asyncio.get_running_loop().create_task(self.recover(task))
        task.recovery.add_done_callback(ended)
        return task.recovery

    async def recover(self, task: Task) -> None:
        """Give the task a shim again, or ``final``. Ends early when the task is being deleted."""
        if not task.own:
            await self._bury_foreign(task)
            return
        attempt = 0
        while not task.deleting:
            await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            attempt += 1
            try:
                if not await self.replace(task):
                    _log.warning("no container in the bundle: it is swept", namespace=task.namespace, id=task.id)
                    await self.destroy(task)
                    self.vanished(task)
                    return
            except (errors.GantryError, OSError) as error:
                _log.error("shim not replaced", namespace=task.namespace, id=task.id, attempt=attempt, error=str(error))
            else:
                _log.info("shim replaced", namespace=task.namespace, id=task.id, shim_pid=task.shim_pid)
                return
            if attempt >= DEAD_ATTEMPTS and not _alive(task.pid):
                await self._conclude(task)
                return

    async def replace(self, task: Task) -> bool:
        """Fork a shim that takes over the container; the task is connected to it. Raises what went wrong.

        False when the shim found no container: its create was cut off.
        """
        socket_path = self._bundles.shim_socket(task.namespace, task.id)
        launched = await self._zygote.restore(task.namespace, task.id, task.bundle.path, socket_path)
        client = await ShimClient.connect(task.namespace, launched.address, launched.version)
        try:
            answer = await client.call(
                "Connect", shim_v2_pb2.ConnectRequest(id=task.id), shim_v2_pb2.ConnectResponse, seconds=CALL_SECONDS
            )
        except BaseException:
            client.close()
            raise
        task.pid = answer.task_pid or task.pid
        task.shim_pid = launched.pid
        self.watch(task, client)
        return bool(answer.task_pid)

    async def _conclude(self, task: Task) -> None:
        """No shim can be had and the container is dead: find out how it ended and tell the world."""
        record = task.bundle.exit_record()
        if record is None:
            record = ExitRecord(task.pid, await self._status_of(task), time.time_ns())
            task.bundle.write_exit_record(record)
        self._finish(task, record)

    async def _status_of(self, task: Task) -> int:
        try:
            status = await self._zygote.reaped(task.pid)
        except errors.GantryError as error:
            _log.error("zygote not asked", namespace=task.namespace, id=task.id, error=str(error))
            status = None
        if status is None:
            status = self._reaped_here(task.pid)
        if status is None:
            _log.error(
                "exit status unknown: nobody saw the container end",
                namespace=task.namespace,
                id=task.id,
                pid=task.pid,
                reported=UNKNOWN_STATUS,
            )
            return UNKNOWN_STATUS
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code

    async def _bury_foreign(self, task: Task) -> None:
        """A foreign shim's container dies with its shim: its ``delete`` cleans up and tells the status.

        What ended before its shim did, with its sandbox, is on record.
        """
        known = task.bundle.exit_record()
        try:
            answer = await foreign.delete(task.program, task.bundle, self._daemon)
            record = ExitRecord(answer.pid or task.pid, answer.exit_status, answer.exited_at.ToNanoseconds())
        except (errors.GantryError, OSError) as error:
            _log.error("shim delete failed", namespace=task.namespace, id=task.id, error=str(error))
            record = ExitRecord(task.pid, UNKNOWN_STATUS, time.time_ns())
        if known is not None:
            task.final = known
            return
        if record.exited_at <= 0:
            record = ExitRecord(record.pid, record.exit_status, time.time_ns())
        task.bundle.write_exit_record(record)
        self._finish(task, record)

    def _finish(self, task: Task, record: ExitRecord) -> None:
        task.final = record
        event = event_types_pb2.TaskExit(
            container_id=task.id,
            id=task.id,
            pid=record.pid,
            exit_status=record.exit_status,
            exited_at=timestamp(record.exited_at),
        )
        self._publish(task.namespace, "/tasks/exit", event)

    async def destroy(self, task: Task) -> None:
        """Remove everything of a task that nobody may use any more: processes, shim, sockets, bundle.

        The way of the shim is tried first because it knows the runtime's state; what it cannot do its program's
        ``delete`` does; the bundle goes last, so that a failure leaves something for the next start to sweep.
        """
        task.deleting = True
        never_made = task.own and task.client is None and task.bundle.read("options.json") is None
        if not never_made and not await self._destroy_by_shim(task):
            await foreign.delete(task.program, task.bundle, self._daemon)
        await self.drop(task)
        self.forget(task)

    async def _destroy_by_shim(self, task: Task) -> bool:
        try:
            if task.client is None:
                if not task.own:
                    return False
                await self.replace(task)
            client = task.client
            assert client is not None
            await self._kill_and_delete(task, client)
            await self.shut_down(task, client)
        except (errors.GantryError, OSError) as error:
            _log.warning("shim could not clean up", namespace=task.namespace, id=task.id, error=str(error))
            return False
        return True

    async def _kill_and_delete(self, task: Task, client: ShimClient) -> None:
        request = shim_v2_pb2.DeleteRequest(id=task.id)
        try:
            kill = shim_v2_pb2.KillRequest(id=task.id, signal=SIGKILL, all=True)
            await client.call("Kill", kill, Empty, seconds=CALL_SECONDS)
            await client.call(
                "Wait", shim_v2_pb2.WaitRequest(id=task.id), shim_v2_pb2.WaitResponse, seconds=CALL_SECONDS
            )
        except (errors.NotFound, errors.FailedPrecondition):
            pass
        try:
            await client.call("Delete", request, shim_v2_pb2.DeleteResponse, seconds=CALL_SECONDS)
        except errors.NotFound:
            return

    async def shut_down(self, task: Task, client: ShimClient) -> None:
        """End a shim that has no container any more and wait until it is gone; ours goes with its bundle anyway."""
        client.on_lost = None
        if task.shares_shim:
            client.close()
            task.client = None
            return
        with contextlib.suppress(errors.GantryError):  # it may hang up as soon as it has read the request
            await client.call("Shutdown", shim_v2_pb2.ShutdownRequest(id=task.id), Empty, seconds=CALL_SECONDS)
        if not await client.hung_up(CALL_SECONDS):
            # A shim that serves a pod stays for the pod's other containers.
            client.close()
        task.client = None

    async def drop(self, task: Task) -> None:
        """Make the keeper forget the container's descriptors; a keeper that cannot be reached has none."""
        if task.own:
            try:
                await self._zygote.drop(task.namespace, task.id)
            except errors.GantryError as error:
                _log.warning("keeper not told", namespace=task.namespace, id=task.id, error=str(error))

    def forget(self, task: Task) -> None:
        """Remove what outlives the shim: its log, its socket, the bundle."""
        task.close()
        if task.own:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._bundles.shim_socket(task.namespace, task.id))
        task.bundle.remove()


def timestamp(nanoseconds: int) -> Timestamp:
    """Nanoseconds since the epoch as protobuf has it."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def _alive(pid: int) -> bool:
    """Whether ``pid`` is a process that has not ended."""
    if pid <= 0:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False
