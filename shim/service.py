"""The Task service: one method per call of containerd.task.v2 and v3.

Rule: a method checks names and hands over to ``shim.container``; errors of the taxonomy become ttrpc statuses here and
nowhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from oci import errors
from oci.version import __version__
from protos.shim_messages import (
    CHECKPOINT_OPTIONS,
    PROCESS_DETAILS,
    RUNC_OPTIONS,
    TASK_METHODS,
    TASK_SERVICES,
    Method,
)
from protos.wire import Values, WireError
from shim import metrics, runtimes
from shim.bundle import INIT, Bundle
from shim.config import ShimConfig
from shim.container import Container
from shim.exits import Children
from shim.loop import Loop, report
from shim.parking import Parking
from shim.process import Process
from shim.publisher import Publisher
from shim.server import Deferred, Failure
from shim.stdio import Uris

if TYPE_CHECKING:
    from shim.sandbox import SandboxService
    from shim.worker import Worker

Handler = Callable[[Values], Values | Deferred]
_NOTHING: Values = {}


class TaskService:
    """All containers of one shim. ``on_shutdown`` is called when containerd needs it no more."""

    def __init__(self, loop: Loop, config: ShimConfig, worker: Worker | None = None) -> None:
        """``worker`` is for the first container."""
        self.loop = loop
        self._worker = worker
        self.config = config
        self.containers: dict[str, Container] = {}
        self._children = Children()
        self.publisher = Publisher(loop, config.ttrpc_address, config.namespace, f"{config.bundle}/events")
        self.on_shutdown: Callable[[], None] = loop.stop
        self.methods = TASK_METHODS
        self._sandbox: SandboxService | None = None
        self._handlers: dict[str, Handler] = {
            "State": self._state,
            "Create": self._create,
            "Start": self._start,
            "Delete": self._delete,
            "Pids": self._pids,
            "Pause": self._pause,
            "Resume": self._resume,
            "Checkpoint": self._checkpoint,
            "Kill": self._kill,
            "Exec": self._exec,
            "ResizePty": self._resize_pty,
            "CloseIO": self._close_io,
            "Update": self._update,
            "Wait": self._wait,
            "Stats": self._stats,
            "Connect": self._connect,
            "Shutdown": self._shutdown,
        }

    def offered(self, service: str) -> dict[str, Method]:
        """The methods of Task, or of the sandbox service; that one begins with its first call, as few ever come."""
        if service in TASK_SERVICES:
            return TASK_METHODS
        from protos.sandbox_messages import SANDBOX_METHODS, SANDBOX_SERVICE

        if service != SANDBOX_SERVICE:
            return {}
        if self._sandbox is None:
            from shim.sandbox import SandboxService

            self._sandbox = SandboxService(self)
            self._handlers = {**self._handlers, **self._sandbox.handlers}
            self.methods = {**self.methods, **SANDBOX_METHODS}
        return SANDBOX_METHODS

    @property
    def has_sandbox(self) -> bool:
        """Whether a sandbox of containerd's lives here: this shim is its only witness."""
        return self._sandbox is not None and self._sandbox.alive

    def call(self, method: str, request: Values) -> Values | Deferred:
        """Answer one call. Raises ``Failure``."""
        try:
            return self._handlers[method](request)
        except errors.GantryError as error:
            if self.config.debug:
                report(f"{method} {request.get('id')} failed", error)
            raise Failure(error.code, str(error)) from error
        except OSError as error:
            report(f"{method} {request.get('id')} failed", error)
            raise Failure(errors.Code.UNKNOWN, f"{method} of task {request.get('id')}: {error}") from error

    def reap(self) -> None:
        """Collect all dead children: execs before inits, so that events come in order."""
        ended: list[tuple[Container, Process, int]] = []
        for pid, status in self._children.ended():
            ended += [
                (c, p, status) for c in self.containers.values() for p in c.processes() if p.pid == pid and p.running
            ]
        ended.sort(key=lambda entry: entry[1] is entry[0].init)
        for container, process, status in ended:
            container.reaped(process, status)

    def container(self, container_id: str) -> Container:
        """The container; ``NotFound`` when this shim has none of that id."""
        found = self.containers.get(container_id)
        if found is None:
            raise errors.NotFound(f"task {container_id} does not exist")
        return found

    def _process(self, request: Values) -> tuple[Container, Process]:
        container = self.container(request["id"])
        return container, container.process(request["exec_id"])

    def new_container(self, container_id: str, bundle_path: str, uris: Uris, options: Values) -> Container:
        """A container object with all it needs; nothing is made yet."""
        config = self.config
        bundle = Bundle(bundle_path)
        scratch = os.path.dirname(config.socket)
        root = runtimes.root_of(options, config.address, config.namespace)
        worker, self._worker = self._worker, None
        runtime = runtimes.runtime_for(options, root, bundle_path, scratch, self._children, worker)
        parking = Parking(self.loop, config.keeper, f"{config.namespace}/{container_id}")
        return Container(
            container_id,
            bundle,
            runtime,
            Process("", uris),
            loop=self.loop,
            parking=parking,
            publisher=self.publisher,
            zygote=config.zygote,
        )

    def _create(self, request: Values) -> Values:
        container_id = request["id"]
        if container_id in self.containers:
            raise errors.AlreadyExists(f"task {container_id} already exists")
        options = _runc_options(request["options"])
        uris = _uris(request)
        container = self.new_container(container_id, request["bundle"], uris, options)
        kept = {"uris": uris, "rootfs": request["rootfs"], "options": options}
        container.bundle.write_options(kept)
        container.create(request["rootfs"], options, request["checkpoint"])
        self.containers[container_id] = container
        return {"pid": container.init.pid}

    def _start(self, request: Values) -> Values:
        container, process = self._process(request)
        if process is container.init:
            container.start()
        else:
            container.start_exec(process)
        return {"pid": process.pid}

    def _delete(self, request: Values) -> Values:
        container, process = self._process(request)
        if process is not container.init:
            return container.delete_exec(process)
        answer = container.delete()
        del self.containers[container.container_id]
        return answer

    def _exec(self, request: Values) -> Values:
        container = self.container(request["id"])
        exec_id = request["exec_id"]
        if not exec_id or exec_id in (INIT, ".", "..") or "/" in exec_id:
            raise errors.InvalidArgument(f"exec id {exec_id!r} is not allowed")
        container.add_exec(exec_id, _uris(request), _json_of(request["spec"], "exec spec"))
        return _NOTHING

    def _state(self, request: Values) -> Values:
        container, process = self._process(request)
        return {"id": container.container_id, "bundle": container.bundle.path, **process.state_values()}

    def _pids(self, request: Values) -> Values:
        container = self.container(request["id"])
        names = {process.pid: process.exec_id for process in container.execs.values() if process.running}
        listed: list[Values] = []
        for pid in container.runtime.pids(container.container_id) if container.init.running else ():
            info: Values | None = None
            if pid in names:
                value = PROCESS_DETAILS.encode({"exec_id": names[pid]})
                info = {"type_url": PROCESS_DETAILS.name, "value": value}
            listed.append({"pid": pid, "info": info})
        return {"processes": listed}

    def _pause(self, request: Values) -> Values:
        self.container(request["id"]).pause()
        return _NOTHING

    def _resume(self, request: Values) -> Values:
        self.container(request["id"]).resume()
        return _NOTHING

    def _checkpoint(self, request: Values) -> Values:
        container = self.container(request["id"])
        if not request["path"].startswith("/"):
            raise errors.InvalidArgument(f"checkpoint of task {request['id']}: {request['path']!r} is no absolute path")
        container.checkpoint(request["path"], _checkpoint_options(request["options"]))
        return _NOTHING

    def _kill(self, request: Values) -> Values:
        container, process = self._process(request)
        if not 1 <= request["signal"] <= 64:
            raise errors.InvalidArgument(f"signal {request['signal']} does not exist")
        container.kill(process, request["signal"], request["all"])
        return _NOTHING

    def _resize_pty(self, request: Values) -> Values:
        _, process = self._process(request)
        if process.io is not None:
            process.io.resize(request["width"], request["height"])
        return _NOTHING

    def _close_io(self, request: Values) -> Values:
        _, process = self._process(request)
        if request["stdin"] and process.io is not None:
            process.io.close_stdin()
        return _NOTHING

    def _update(self, request: Values) -> Values:
        container = self.container(request["id"])
        container.runtime.update(container.container_id, _json_of(request["resources"], "resources"))
        return _NOTHING

    def _wait(self, request: Values) -> Deferred:
        _, process = self._process(request)
        return process.wait()

    def _stats(self, request: Values) -> Values:
        container = self.container(request["id"])
        return {"stats": metrics.encode(container.runtime.stats(container.container_id))}

    def _connect(self, request: Values) -> Values:
        container = self.containers.get(request["id"] or self.config.container_id)
        task_pid = container.init.pid if container is not None else 0
        return {"shim_pid": os.getpid(), "task_pid": task_pid, "version": __version__}

    def _shutdown(self, request: Values) -> Values:
        if request["now"] or not (self.containers or self.has_sandbox):
            self.on_shutdown()
        return _NOTHING


def _uris(request: Values) -> Uris:
    return Uris(request["stdin"], request["stdout"], request["stderr"], request["terminal"])


def _runc_options(value: Values | None) -> Values:
    """The runtime options in an Any; other types than runc's are refused."""
    if value is None or not value["type_url"]:
        return runtimes.no_options()
    if value["type_url"].rpartition("/")[2] != RUNC_OPTIONS.name:
        raise errors.InvalidArgument(f"runtime options of type {value['type_url']}: {RUNC_OPTIONS.name} is understood")
    try:
        return RUNC_OPTIONS.decode(value["value"])
    except WireError as error:
        raise errors.InvalidArgument(f"runtime options: {error}") from error


def _checkpoint_options(value: Values | None) -> Values:
    try:
        return CHECKPOINT_OPTIONS.decode(value["value"] if value is not None else b"")
    except WireError as error:
        raise errors.InvalidArgument(f"checkpoint options: {error}") from error


def _json_of(value: Values | None, what: str) -> dict[str, Any]:
    """The JSON object in an Any."""
    try:
        decoded = json.loads(value["value"]) if value is not None else None
    except ValueError as error:
        raise errors.InvalidArgument(f"{what} is not JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise errors.InvalidArgument(f"{what} is not a JSON object")
    return decoded
