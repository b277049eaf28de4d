"""One container of the shim: its processes, its runtime, and what must happen in which order.

Rule: events go create < start < exit < delete, and init's exit comes after every exec's. An exit is on disk before
anybody hears of it, and before that the last output is in the log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

from oci import errors
from protos import shim_messages as messages
from protos.shim_messages import STATUS_CREATED, STATUS_PAUSED, STATUS_RUNNING, STATUS_STOPPED
from protos.wire import Values
from shim.apart import Killed
from shim.bundle import ADDED, CREATED, STARTED, STARTING, Bundle, ExitRecord
from shim.exits import NEVER_STARTED, UNKNOWN, exit_status, status_from_zygote, status_of_orphan
from shim.io import ProcessIO
from shim.loggers import Owner
from shim.loop import READ, Loop, report
from shim.oom import OomWatch
from shim.parking import Parking
from shim.process import Process, parked_name
from shim.publisher import Publisher
from shim.runtimes import CreateRequest, TaskRuntime
from shim.stdio import Uris

_ORPHAN_ATTEMPTS = 100  # the supervisor leaves a zombie alone for up to two seconds
_ORPHAN_SECONDS = 0.05
_KILL_SECONDS = 10.0


class Container:
    """A task: init and its execs."""

    def __init__(
        self,
        container_id: str,
        bundle: Bundle,
        runtime: TaskRuntime,
        init: Process,
        *,
        loop: Loop,
        parking: Parking,
        publisher: Publisher,
        zygote: str,
    ) -> None:
        self.container_id = container_id
        self.bundle = bundle
        self.runtime = runtime
        self.init = init
        self.execs: dict[str, Process] = {}
        self._loop, self.parking, self._publisher, self._zygote = loop, parking, publisher, zygote
        self._init_ended: ExitRecord | None = None
        self.oom: OomWatch | None = None
        parking.everything = self.everything

    def everything(self) -> dict[str, int]:
        """All descriptors that a keeper should hold."""
        everything: dict[str, int] = {}
        for process in self.processes():
            if process.running:
                everything.update(process.parked(in_use=True))
        return everything

    def processes(self) -> list[Process]:
        """Init and all execs."""
        return [self.init, *self.execs.values()]

    def process(self, exec_id: str) -> Process:
        """Init for an empty id, else the exec. Raises ``NotFound``."""
        if not exec_id:
            return self.init
        found = self.execs.get(exec_id)
        if found is None:
            raise errors.NotFound(f"process {exec_id} does not exist in task {self.container_id}")
        return found

    def create(self, rootfs: list[Values], options: Values, checkpoint: str = "") -> None:
        """Make the container; its init waits afterwards. Leaves nothing behind on failure.

        What is restored from the directory ``checkpoint`` goes on at once: its start only says so.
        """
        init = self.init
        init.io = ProcessIO.open(self._loop, init.uris, self._owner(self.container_id))
        request = CreateRequest(self.container_id, self.bundle.path, init.io.stdio, rootfs, options)
        try:
            if checkpoint:
                self.bundle.mark_restored()
                launched = self.runtime.restore(request, checkpoint)
            else:
                launched = self.runtime.create(request)
        except BaseException:
            init.close()
            raise
        init.launched(launched)
        self.parking.put(init.parked())
        self.bundle.write_pid("init.pid", init.pid)
        self._enter(init, CREATED)
        self.hook_stdin(init)
        self.watch_oom()
        uris = init.uris
        self._publisher.publish(
            messages.TASK_CREATE,
            {
                "container_id": self.container_id,
                "bundle": self.bundle.path,
                "rootfs": rootfs,
                "io": uris._asdict(),
                "pid": init.pid,
            },
        )

    def hook_stdin(self, process: Process) -> None:
        """When a process's stdin is closed here, the keeper's copy must go too, or there is no end of file."""
        if process.io is not None:
            names = [parked_name(process.exec_id, name) for name in ("stdin", "hold_stdin")]
            process.io.on_stdin_closed(lambda: self.parking.drop(names))

    def start(self) -> None:
        """Let init execute its program."""
        if self.init.status != STATUS_CREATED:
            raise errors.FailedPrecondition(f"task {self.container_id} is already started")
        self._enter(self.init, STARTING)
        try:
            if not self.bundle.restored():
                self.runtime.start(self.container_id)
        except BaseException:
            self._enter(self.init, CREATED)
            raise
        self.init.started()
        self.publish_start()

    def publish_start(self) -> None:
        """Tell containerd that init's program runs, and note that this is done."""
        self._publisher.publish(messages.TASK_START, {"container_id": self.container_id, "pid": self.init.pid})
        self._enter(self.init, STARTED)

    def _enter(self, process: Process, phase: str) -> None:
        process.phase = phase
        self.bundle.write_process(process.record())

    def add_exec(self, exec_id: str, uris: Uris, spec: dict[str, Any]) -> None:
        """Take an exec in; it runs from ``start_exec`` on."""
        if exec_id in self.execs:
            raise errors.AlreadyExists(f"exec {exec_id} already exists in task {self.container_id}")
        if not self.init.running:
            raise errors.FailedPrecondition(f"task {self.container_id} is not running")
        process = Process(exec_id, uris, {**spec, "terminal": uris.terminal})
        self.execs[exec_id] = process
        self._enter(process, ADDED)
        self._publisher.publish(messages.TASK_EXEC_ADDED, {"container_id": self.container_id, "exec_id": exec_id})

    def start_exec(self, process: Process) -> None:
        """Run an added exec."""
        if process.pid or process.exit is not None:
            raise errors.FailedPrecondition(f"exec {process.exec_id} of task {self.container_id} is already started")
        assert process.spec is not None
        process.io = ProcessIO.open(self._loop, process.uris, self._owner(process.exec_id))
        self._enter(process, STARTING)
        try:
            launched = self.runtime.exec(self.container_id, process.spec, process.io.stdio)
        except BaseException as error:
            self.never_ran(process)
            if isinstance(error, Killed):
                self.end_untold_execs()
            raise
        process.launched(launched)
        process.started()
        self.parking.put(process.parked())
        self._enter(process, STARTED)
        self.hook_stdin(process)
        self._publisher.publish(
            messages.TASK_EXEC_STARTED,
            {"container_id": self.container_id, "exec_id": process.exec_id, "pid": process.pid},
        )

    def end_untold_execs(self) -> None:
        """Kill what entered the container by an exec whose start was never answered: nobody could ever ask for it.

        Such a process has its parent outside of the container, as init and the recorded execs have.
        """
        known = {process.pid for process in self.processes()}
        try:
            inside = set(self.runtime.pids(self.container_id))
        except errors.GantryError as error:
            report(f"the processes of {self.container_id} cannot be listed: {error}")
            return
        for pid in inside - known:
            if _parent(pid) not in {0, *inside}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def never_ran(self, process: Process) -> None:
        """An exec whose start failed counts as ended, so that Wait and Delete have an answer."""
        record = ExitRecord(0, NEVER_STARTED, time.time_ns())
        process.close()
        self.bundle.write_exit(process.exec_id, record)
        process.ended(record)

    def reaped(self, process: Process, wait_status: int) -> None:
        """A child of this shim has ended."""
        self._ended(process, exit_status(wait_status))

    def watch_orphan(self, process: Process) -> None:
        """Follow a process that is not this shim's child: its pidfd becomes readable when it ends."""
        process.is_child = False
        self._loop.watch(process.pidfd, READ, lambda _events: self._orphan_ended(process, _ORPHAN_ATTEMPTS))

    def _orphan_ended(self, process: Process, attempts: int) -> None:
        self._loop.unwatch(process.pidfd)
        status = status_of_orphan(process.pidfd, process.pid, self._zygote)
        if status is None and attempts:
            self._loop.call_later(_ORPHAN_SECONDS, lambda: self._orphan_ended(process, attempts - 1))
            return
        if status is None:
            report(f"nobody knows how process {process.pid} of {self.container_id} ended: status {UNKNOWN} is reported")
        self._ended(process, UNKNOWN if status is None else exit_status(status))

    def lost(self, process: Process) -> None:
        """A process ended while no shim looked, and not even a pidfd of it is left."""
        status = status_from_zygote(self._zygote, process.pid)
        if status is None:
            report(f"nobody knows how process {process.pid} of {self.container_id} ended: status {UNKNOWN} is reported")
        self._ended(process, UNKNOWN if status is None else exit_status(status))

    def _ended(self, process: Process, status: int) -> None:
        record = ExitRecord(process.pid, status, time.time_ns())
        if process is not self.init:
            self._conclude(process, record)
        else:
            self._init_ended = record
            if not self.bundle.has_pid_namespace():
                self._kill_the_rest()
        if self._init_ended is not None and not any(other.running for other in self.execs.values()):
            self._conclude(self.init, self._init_ended)
            self._init_ended = None

    def _kill_the_rest(self) -> None:
        """Without a pid namespace of its own, what init started would survive it."""
        try:
            self.runtime.kill(self.container_id, signal.SIGKILL, True)
        except errors.GantryError as error:
            report(f"cannot kill what is left of {self.container_id}: {error}")

    def _conclude(self, process: Process, record: ExitRecord) -> None:
        """Output first, then the record, then everybody else."""
        if process.io is not None:
            process.io.drain()
        self.bundle.write_exit(process.exec_id, record)
        if process is self.init:
            self.stop_watching_oom()
        self.publish_exit(process, record)
        parked = process.parked()
        process.ended(record)
        self.parking.drop(None if process is self.init else parked)

    def publish_exit(self, process: Process, record: ExitRecord) -> None:
        """Tell containerd that ``process`` has ended."""
        self._publisher.publish(
            messages.TASK_EXIT,
            {
                "container_id": self.container_id,
                "id": process.exec_id or self.container_id,
                "pid": record.pid,
                "exit_status": record.exit_status,
                "exited_at": messages.timestamp(record.exited_at),
            },
        )

    def watch_oom(self, handed_over: tuple[int, int, int] | None = None) -> None:
        """Tell of processes that the kernel kills for want of memory, from now on."""

        def told() -> None:
            self._publisher.publish(messages.TASK_OOM, {"container_id": self.container_id})

        self.oom = OomWatch(self._loop, self.init.pid, told, handed_over)

    def stop_watching_oom(self) -> None:
        """Tell of kills that were not told yet, and watch no more. Idempotent."""
        if self.oom is not None:
            self.oom.look()
            self.oom.close()
            self.oom = None

    def _owner(self, name: str) -> Owner:
        return Owner(name, self._publisher.namespace)

    def status(self) -> int:
        """Init's status."""
        return self.init.status

    def kill(self, process: Process, number: int, everyone: bool) -> None:
        """Signal a process, or all of the container."""
        if process is not self.init:
            process.signal(number)
        elif everyone or self.init.status == STATUS_PAUSED:
            if not self.init.running:
                raise errors.NotFound("process already finished")
            self.runtime.kill(self.container_id, number, everyone)
        else:
            process.signal(number)

    def pause(self) -> None:
        """Freeze all processes."""
        if self.init.status != STATUS_RUNNING:
            raise errors.FailedPrecondition(f"task {self.container_id} is not running")
        self.runtime.pause(self.container_id)
        self.init.status = STATUS_PAUSED
        self._publisher.publish(messages.TASK_PAUSED, {"container_id": self.container_id})

    def resume(self) -> None:
        """Thaw them."""
        if self.init.status != STATUS_PAUSED:
            raise errors.FailedPrecondition(f"task {self.container_id} is not paused")
        self.runtime.resume(self.container_id)
        self.init.status = STATUS_RUNNING
        self._publisher.publish(messages.TASK_RESUMED, {"container_id": self.container_id})

    def checkpoint(self, path: str, options: Values) -> None:
        """Write the container's processes to ``path``; containerd's client pauses them first."""
        if self.init.status not in (STATUS_RUNNING, STATUS_PAUSED):
            raise errors.FailedPrecondition(f"task {self.container_id} is not running")
        self.runtime.checkpoint(self.container_id, path, options)
        self._publisher.publish(messages.TASK_CHECKPOINTED, {"container_id": self.container_id, "checkpoint": path})

    def delete_exec(self, process: Process) -> Values:
        """Forget an ended exec."""
        if process.running:
            raise errors.FailedPrecondition(f"exec {process.exec_id} of task {self.container_id} is still running")
        process.close()
        del self.execs[process.exec_id]
        self.bundle.forget_process(process.exec_id)
        return {"pid": process.pid, **process.exit_values()}

    def delete(self) -> Values:
        """Remove the container with all that belongs to it. Raises ``FailedPrecondition`` while it runs."""
        if self.init.running and self.init.status != STATUS_CREATED:
            raise errors.FailedPrecondition(f"task {self.container_id} must be stopped before it can be deleted")
        if self.init.running:
            self._end_created_init()
        self.runtime.delete(self.container_id)
        for process in self.processes():
            process.close()
        self.stop_watching_oom()
        self.parking.drop()
        self.parking.close()
        values = self.init.exit_values()
        self._publisher.publish(
            messages.TASK_DELETE, {"container_id": self.container_id, "pid": self.init.pid, **values}
        )
        return {"pid": self.init.pid, **values}

    def _end_created_init(self) -> None:
        """Kill an init that was never started, and see its end before the container goes."""
        init = self.init
        self.runtime.adopt_init()
        init.signal(signal.SIGKILL)
        deadline = time.monotonic() + _KILL_SECONDS
        while init.exit is None and time.monotonic() < deadline:
            if init.is_child:
                pid, status = os.waitpid(init.pid, os.WNOHANG)
                if pid:
                    self.reaped(init, status)
            else:
                status_or_none = status_of_orphan(init.pidfd, init.pid, self._zygote)
                if status_or_none is not None:
                    self._loop.unwatch(init.pidfd)
                    self.reaped(init, status_or_none)
            if init.exit is None:
                time.sleep(0.001)
        if init.status != STATUS_STOPPED:
            raise errors.Internal(f"init {init.pid} of task {self.container_id} did not end after SIGKILL")


def _parent(pid: int) -> int:
    """The parent of ``pid``; 0 when it is gone or has none in this pid namespace."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0
