"""Execs: further processes in a running container, from create to their exit code.

Rule: an exec is over when the supervisor told its exit *and* its output has been read to the end (or two seconds have
passed, for a grandchild may hold a stream open for ever); only then is a client's connection closed, so that an inspect
after it always shows the exit code.

    created ──start──▶ running ──exit──▶ ended        (a start that fails: created ──▶ ended)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage

from engine.backend import translated
from engine.calls import HungUp
from engine.containers.exec_stdio import DetachFilter, ExecFifos, drain_left_over, parse_detach_keys
from engine.containers.launch import KNOWN_PAUSE, KNOWN_SECONDS
from engine.containers.machine import Machine
from engine.containers.names import new_id
from engine.containers.registry import Registry
from engine.http.messages import Duplex
from engine.spec.exec import ExecRequest, build_exec
from oci.errors import AlreadyExists, FailedPrecondition, GantryError, InvalidArgument, NotFound, Unavailable
from protos.attach import STDOUT, frame_header
from protos.containerd import task_types_pb2, tasks_pb2

log = structlog.get_logger()

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
STREAMS_SECONDS = 2.0
"""How long after a process's end its output may stay open, as in dockerd."""
KEEP_SECONDS = 300.0
"""How long an ended exec can be inspected."""
SIGKILL = 9
KILLED = 128 + SIGKILL
STOP_GRACE_SECONDS = 10.0


class ExecConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """The body of ``POST /containers/{id}/exec``."""

    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    cmd: tuple[str, ...] | None = None
    tty: bool = False
    env: tuple[str, ...] | None = None
    user: str = ""
    working_dir: str = ""
    privileged: bool = False
    detach_keys: str = ""
    console_size: tuple[int, int] | None = None


class ExecProcess:
    """One exec. ``exit_code`` is None until it has ended; ``ended`` is set then."""

    def __init__(self, exec_id: str, machine: Machine, config: ExecConfig) -> None:
        self.id = exec_id
        self.machine = machine
        self.config = config
        self.args = config.cmd or ()
        self.detach_keys = parse_detach_keys(config.detach_keys)
        self.running = False
        self.pid = 0
        self.exit_code: int | None = None
        self.ended = asyncio.Event()
        self.exited = asyncio.Event()
        """Set by the supervisor's word; ``ended`` follows when the streams are done."""
        self.status = 0
        self.finished_at = 0.0

    @property
    def command(self) -> str:
        """The command line as events tell it."""
        return " ".join(self.args)

    def document(self) -> dict[str, Any]:
        """``GET /exec/{id}/json``."""
        process: dict[str, Any] = {
            "tty": self.config.tty,
            "entrypoint": self.args[0],
            "arguments": list(self.args[1:]),
            "privileged": self.config.privileged,
        }
        if self.config.user:
            process["user"] = self.config.user
        return {
            "ID": self.id,
            "Running": self.running,
            "ExitCode": self.exit_code,
            "ProcessConfig": process,
            "OpenStdin": self.config.attach_stdin,
            "OpenStderr": self.config.attach_stderr,
            "OpenStdout": self.config.attach_stdout,
            "CanRemove": False,
            "ContainerID": self.machine.id,
            "DetachKeys": "",
            "Pid": self.pid,
        }


def check_can_exec(machine: Machine) -> None:
    """Raises ``FailedPrecondition`` in Docker's words unless a process can be started in ``machine`` now."""
    status = machine.doc.state.status
    if status == "paused":
        raise FailedPrecondition(f"container {machine.id} is paused, unpause the container before exec")
    if status == "restarting":
        raise FailedPrecondition(f"container {machine.id} is restarting, wait until the container is running")
    if status != "running":
        raise FailedPrecondition(f"container {machine.id} is not running")


class Execs:
    """All execs of this engine. They do not outlive the daemon's memory, as in Docker; their processes do."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._execs: dict[str, ExecProcess] = {}
        self._jobs: set[asyncio.Task[Any]] = set()
        registry.exec_exits.append(self._exit_told)
        registry.ended.append(self._machine_ended)
        registry.reconnected.append(self._ask_again)

    def restore(self) -> None:
        """At the daemon's start: serve the FIFOs that execs of the last daemon still write to."""
        self.spawn(drain_left_over(f"{self._registry.paths.exec_root}/f"))

    def spawn(self, job: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``job`` beside everything else."""
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task

    async def close(self) -> None:
        """Stop serving streams; processes go on."""
        for task in tuple(self._jobs):
            task.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    # Life

    def create(self, reference: str, config: ExecConfig) -> ExecProcess:
        """Prepare an exec; nothing runs yet. Raises ``NotFound``, ``InvalidArgument``, ``FailedPrecondition``."""
        if not config.cmd:
            raise InvalidArgument("No exec command specified")
        machine = self._registry.find(reference)
        check_can_exec(machine)
        process = ExecProcess(new_id(), machine, config)
        self._sweep()
        self._execs[process.id] = process
        machine.execs[process.id] = process
        self._publish(process, "exec_create")
        return process

    def get(self, exec_id: str) -> ExecProcess:
        """Raises ``NotFound("No such exec instance: x")``."""
        process = self._execs.get(exec_id)
        if process is None:
            raise NotFound(f"No such exec instance: {exec_id}")
        return process

    def startable(self, exec_id: str) -> ExecProcess:
        """The exec, when it can be started; raises as Docker does."""
        process = self.get(exec_id)
        if process.exit_code is not None:
            raise FailedPrecondition(f"exec command {exec_id} has already run")
        if process.running:
            raise FailedPrecondition(f"exec command {exec_id} is already running")
        check_can_exec(process.machine)
        return process

    async def start(self, process: ExecProcess, fifos: ExecFifos | None, console: tuple[int, int] | None) -> None:
        """Run the process. A failure ends the exec with 126 or 127 and is raised in the runtime's words."""
        process.running = True
        self._publish(process, "exec_start")
        try:
            process.pid = await self._launch(process, fifos, console)
        except BaseException as error:
            code = failed_code(error)
            self._finish(process, code, told=False)
            raise translated_exec(error) from error
        if fifos is not None and fifos.stdin is not None:
            fifos.stdin.established()

    async def _launch(self, process: ExecProcess, fifos: ExecFifos | None, console: tuple[int, int] | None) -> int:
        registry, machine, config = self._registry, process.machine, process.config
        request = ExecRequest(
            args=process.args,
            env=config.env or (),
            user=config.user,
            cwd=config.working_dir,
            tty=config.tty,
            privileged=config.privileged,
            console_size=console or config.console_size or (0, 0),
        )
        spec = build_exec(machine.doc, await registry.rootfs(machine), request)
        stdin, stdout, stderr = fifos.paths if fifos is not None else ("", "", "")
        # One that is there already was put there by a supervisor that died before it said so: ids are never used twice.
        with contextlib.suppress(AlreadyExists), translated():
            await registry.backend.tasks.Exec(
                tasks_pb2.ExecProcessRequest(
                    container_id=machine.id,
                    exec_id=process.id,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    terminal=config.tty,
                    spec=AnyMessage(type_url=SPEC_TYPE, value=msgspec.json.encode(spec)),
                )
            )
        try:
            return await self._begin(process)
        except BaseException:
            self.spawn(self._delete(process))
            raise

    async def _begin(self, process: ExecProcess) -> int:
        """Let the process that was added run; its pid. Where the answer was lost, the process says whether it does."""
        tasks = self._registry.backend.tasks
        request = tasks_pb2.StartRequest(container_id=process.machine.id, exec_id=process.id)
        deadline = time.monotonic() + KNOWN_SECONDS
        while True:
            try:
                with translated():
                    return int((await tasks.Start(request)).pid)
            except HungUp:
                found = await self._known(process, deadline)
            if found.status != task_types_pb2.CREATED:
                self.spawn(self._ask(process))  # its end may have been told when nobody listened
                return int(found.pid)
            if time.monotonic() > deadline:
                raise Unavailable(f"exec {process.id} does not start: containerd ends each time it is asked to")

    async def _known(self, process: ExecProcess, deadline: float) -> task_types_pb2.Process:
        """The exec as the supervisor sees it, as soon as that can tell."""
        request = tasks_pb2.GetRequest(container_id=process.machine.id, exec_id=process.id)
        while True:
            with translated():
                found: task_types_pb2.Process = (await self._registry.backend.tasks.Get(request)).process
            if found.status != task_types_pb2.UNKNOWN:
                return found
            if time.monotonic() > deadline:
                raise Unavailable(f"it is not known whether exec {process.id} was started: its shim does not answer")
            await asyncio.sleep(KNOWN_PAUSE)

    async def run_detached(self, process: ExecProcess, console: tuple[int, int] | None) -> None:
        """Start without streams and do not wait for the end."""
        await self.start(process, None, console)
        self.spawn(self._await_end(process, None))

    async def run_captured(self, process: ExecProcess, take: Callable[[bytes], None]) -> None:
        """Start and wait for the end, giving both outputs to ``take``."""
        fifos = self._fifos(process, stdin=False)
        try:
            await self.start(process, fifos, None)
        except BaseException:
            fifos.close()
            raise

        async def sink(stream: int, data: bytes) -> None:
            take(data)

        await asyncio.shield(self.spawn(self._serve(process, fifos, sink)))

    async def run_attached(
        self, process: ExecProcess, duplex: Duplex, console: tuple[int, int] | None, *, framed: bool
    ) -> None:
        """Start with the client's connection as stdio; returns when the exec is over or the client detached."""
        config = process.config
        fifos = self._fifos(process, stdin=config.attach_stdin)
        try:
            await self.start(process, fifos, console)
        except GantryError as error:
            fifos.close()
            await ExecClient(duplex, framed=framed).send(STDOUT, f"{error}\r\n".encode())
            return
        except BaseException:
            fifos.close()
            raise
        client = ExecClient(duplex, framed=framed)
        serving = self.spawn(self._serve(process, fifos, client.send))
        feeding = self.spawn(self._feed(process, fifos, duplex, client)) if fifos.stdin is not None else None
        detached = self.spawn(client.detached.wait())
        try:
            await asyncio.wait({serving, detached}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done() and not serving.cancelled():
                serving.result()
        finally:
            client.gone = True
            for task in (feeding, detached):
                if task is not None and task is not asyncio.current_task():
                    task.cancel()

    def _fifos(self, process: ExecProcess, *, stdin: bool) -> ExecFifos:
        config = process.config
        directory = f"{self._registry.paths.exec_root}/f/{process.id}"
        stderr = config.attach_stderr and not config.tty
        return ExecFifos(directory, stdin=stdin, stdout=config.attach_stdout or config.tty, stderr=stderr)

    async def _serve(
        self, process: ExecProcess, fifos: ExecFifos, sink: Callable[[int, bytes], Awaitable[None]]
    ) -> None:
        """Pump the outputs to ``sink`` until both ended and the exit is known."""

        async def pump(stream: int) -> None:
            while data := await fifos.outputs[stream].read():
                await sink(stream, data)

        try:
            pumps = [asyncio.ensure_future(pump(stream)) for stream in fifos.outputs]
            await self._await_end(process, pumps)
        finally:
            for task in pumps:
                task.cancel()
            fifos.close()

    async def _await_end(self, process: ExecProcess, pumps: list[asyncio.Task[None]] | None) -> None:
        await process.exited.wait()
        if pumps:
            _, late = await asyncio.wait(pumps, timeout=STREAMS_SECONDS)
            if late:
                log.debug("an exec's output stayed open after its end", exec_id=process.id)
        self._finish(process, process.status)
        self.spawn(self._delete(process))

    async def _feed(self, process: ExecProcess, fifos: ExecFifos, duplex: Duplex, client: ExecClient) -> None:
        """Client to stdin; its half-close (or its going away) closes stdin."""
        assert fifos.stdin is not None
        keys = DetachFilter(process.detach_keys) if process.config.tty else None
        try:
            while data := await duplex.read():
                detached = False
                if keys is not None:
                    data, detached = keys.feed(data)
                await fifos.stdin.write(data)
                if detached:
                    self._publish(process, "exec_detach", whole=False)
                    client.detached.set()
                    return
        except (BrokenPipeError, ConnectionError):
            pass
        fifos.stdin.close()
        with contextlib.suppress(GantryError), translated():
            await self._registry.backend.tasks.CloseIO(
                tasks_pb2.CloseIORequest(container_id=process.machine.id, exec_id=process.id, stdin=True)
            )

    async def resize(self, exec_id: str, height: int, width: int) -> None:
        """Set the size of the exec's terminal."""
        process = self.get(exec_id)
        if not process.running:
            raise FailedPrecondition(f"exec process {exec_id} is not running")
        request = tasks_pb2.ResizePtyRequest(
            container_id=process.machine.id, exec_id=exec_id, width=width, height=height
        )
        with translated():
            await self._registry.backend.tasks.ResizePty(request)

    async def kill(self, process: ExecProcess) -> None:
        """SIGKILL, if it still runs."""
        request = tasks_pb2.KillRequest(container_id=process.machine.id, exec_id=process.id, signal=SIGKILL)
        with contextlib.suppress(NotFound), translated():
            await self._registry.backend.tasks.Kill(request)

    # Ends

    def _exit_told(self, machine: Machine, exec_id: str, code: int, at: int) -> None:
        process = self._execs.get(exec_id)
        if process is not None and not process.exited.is_set():
            process.status = code
            process.exited.set()

    def _machine_ended(self, machine: Machine) -> None:
        for process in tuple(machine.execs.values()):
            if process.running:
                self._exit_told(machine, process.id, KILLED, time.time_ns())
            else:
                machine.execs.pop(process.id, None)

    def _ask_again(self) -> None:
        for process in tuple(self._execs.values()):
            if process.pid and not process.exited.is_set():
                self.spawn(self._ask(process))

    async def _ask(self, process: ExecProcess) -> None:
        request = tasks_pb2.WaitRequest(container_id=process.machine.id, exec_id=process.id)
        try:
            with translated():
                answer = await self._registry.backend.tasks.Wait(request)
            code = int(answer.exit_status)
        except NotFound:
            code = KILLED
        except GantryError:
            return
        self._exit_told(process.machine, process.id, code, time.time_ns())

    def _finish(self, process: ExecProcess, code: int, *, told: bool = True) -> None:
        if process.exit_code is not None:
            return
        process.exit_code = code
        process.running = False
        process.pid = 0
        process.finished_at = time.monotonic()
        process.machine.execs.pop(process.id, None)
        if told:
            self._registry.publish(process.machine, "exec_die", {"execID": process.id, "exitCode": str(code)})
        process.ended.set()

    async def _delete(self, process: ExecProcess) -> None:
        request = tasks_pb2.DeleteProcessRequest(container_id=process.machine.id, exec_id=process.id)
        with contextlib.suppress(GantryError), translated():
            await self._registry.backend.tasks.DeleteProcess(request)

    def _sweep(self) -> None:
        """Forget what ended long ago, and what belonged to containers that are gone."""
        now = time.monotonic()
        for exec_id, process in tuple(self._execs.items()):
            old = process.exit_code is not None and now - process.finished_at > KEEP_SECONDS
            if old or process.machine.doc.state.status == "gone":
                del self._execs[exec_id]

    def _publish(self, process: ExecProcess, action: str, *, whole: bool = True) -> None:
        told = f"{action}: {process.command}" if whole else action
        self._registry.publish(process.machine, told, {"execID": process.id})


class ExecClient:
    """The client's side of an attached exec; after it is gone, output goes nowhere."""

    def __init__(self, duplex: Duplex, *, framed: bool) -> None:
        self._duplex = duplex
        self._framed = framed
        self._turn = asyncio.Lock()
        self.gone = False
        self.detached = asyncio.Event()

    async def send(self, stream: int, data: bytes) -> None:
        """One piece of output."""
        if self.gone:
            return
        try:
            async with self._turn:
                await self._duplex.write(frame_header(stream, len(data)) + data if self._framed else data)
        except (ConnectionError, OSError):
            self.gone = True


def failed_code(error: BaseException) -> int:
    """The exit code of an exec that could not start: 127 no such program, 126 cannot be executed or anything else."""
    lowered = str(error).lower()
    if "executable file not found" in lowered or "no such file or directory" in lowered:
        return 127
    return 126


def translated_exec(error: BaseException) -> BaseException:
    """The error in Docker's words: a program that cannot run is the client's mistake."""
    if not isinstance(error, GantryError) or "oci runtime" not in str(error).lower():
        return error
    text = str(error)
    lowered = text.lower()
    words = ("executable file not found", "no such file or directory", "permission denied", "is a directory")
    if any(word in lowered for word in words):
        return InvalidArgument(text)
    return error
