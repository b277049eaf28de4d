"""The OCI runtime behind a container: ours, called by its functions, or any other by its command line.

Rule: both give the same answers and the same errors (``oci.errors``), so nothing above knows which one it has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from oci import errors
from protos.shim_messages import RUNC_OPTIONS
from protos.wire import Values
from runc_py import errors as runc_errors
from runc_py.runtime import Launched, RootfsMount, Runtime, Stdio
from shim.apart import Answer, Kept, Killed, apart, apart_kept
from shim.bundle import Bundle
from shim.exits import Children

if TYPE_CHECKING:
    from runc_py.waiting import WaitingInit
    from shim.commandline import CommandLine
    from shim.worker import Worker

OWN_NAMES = ("", "runc-py")
"""Values of ``Options.binary_name`` that mean the runtime in this process."""

_ATTEMPTS = 5
"""How often a fork that is killed is followed by another one."""

_KINDS: tuple[tuple[type[runc_errors.RuntimeFailure], type[errors.GantryError]], ...] = (
    (runc_errors.ContainerNotFound, errors.NotFound),
    (runc_errors.ContainerExists, errors.AlreadyExists),
    (runc_errors.InvalidSpec, errors.InvalidArgument),
    (runc_errors.InvalidState, errors.FailedPrecondition),
    (runc_errors.NotBuilt, errors.Unimplemented),
)


class CreateRequest:
    """What ``create`` needs to know."""

    __slots__ = ("bundle", "container_id", "no_new_keyring", "no_pivot", "rootfs", "stdio")

    def __init__(
        self, container_id: str, bundle: str, stdio: Stdio | None, rootfs: Sequence[Values], options: Values
    ) -> None:
        self.container_id = container_id
        self.bundle = bundle
        self.stdio = stdio
        self.rootfs = rootfs
        self.no_pivot = bool(options["no_pivot_root"])
        self.no_new_keyring = bool(options["no_new_keyring"])


class TaskRuntime(Protocol):
    """The operations that the shim needs, on containers by id. All raise ``oci.errors.GantryError``."""

    def create(self, request: CreateRequest) -> Launched:
        """Make a container whose init waits; ``stdio`` None means that the spec asks for a terminal."""

    def restore(self, request: CreateRequest, path: str) -> Launched:
        """Make a container of the checkpoint in the directory ``path``; its processes go on at once."""

    def start(self, container_id: str, *, resume: bool = False) -> None:
        """Let init execute the program; ``resume``: carry on where a start may have been killed."""

    def adopt_init(self) -> None:
        """A created init that will not be started is this process's own child from now on. Idempotent."""

    def exec(self, container_id: str, process: dict[str, Any], stdio: Stdio | None) -> Launched:
        """Run another process in it."""

    def kill(self, container_id: str, signal: int, everyone: bool) -> None:
        """Signal init, or every process."""

    def delete(self, container_id: str) -> None:
        """Remove the container and all that belongs to it, whatever its state. Not there is no error."""

    def pids(self, container_id: str) -> Sequence[int]:
        """All processes in it."""

    def pause(self, container_id: str) -> None:
        """Freeze it."""

    def resume(self, container_id: str) -> None:
        """Thaw it."""

    def update(self, container_id: str, resources: dict[str, Any]) -> None:
        """Change its limits."""

    def checkpoint(self, container_id: str, path: str, options: Values) -> None:
        """Write its processes to the directory ``path``; ``options`` are containerd.runc.v1.CheckpointOptions."""

    def stats(self, container_id: str) -> dict[str, Any]:
        """Its usage, in the shape of ``runc events --stats``'s ``data``."""

    def status(self, container_id: str) -> str:
        """``created``, ``running``, ``paused`` or ``stopped``. Raises ``NotFound``."""


class _translated:
    """Context: a runtime failure becomes the error of the taxonomy, ``prefix`` before its message."""

    __slots__ = ("_prefix",)

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, runc_errors.RuntimeFailure):
            for theirs, ours in _KINDS:
                if isinstance(error, theirs):
                    raise ours(f"{self._prefix}{error}") from error
            raise errors.GantryError(f"{self._prefix}{error}") from error
        if isinstance(error, OSError):
            raise errors.GantryError(f"{self._prefix}{error}") from error


class InProcess:
    """``runc_py`` without its command line: what every container needs in a fork of this process, the rest in it."""

    def __init__(self, root: str, cgroup_driver: str, bundle: str, worker: Worker | None = None) -> None:
        """``worker`` makes the container, if it is there and lives."""
        self._root, self._systemd, self._bundle = root, cgroup_driver == "systemd", bundle
        self._runtime = Runtime(root, cgroup_driver=cgroup_driver)
        self._worker = worker
        self._kept: Kept | None = None

    def create(self, request: CreateRequest) -> Launched:
        worker, self._worker = self._worker, None
        if worker is not None:
            with contextlib.suppress(Killed):
                return self._create_by(worker, request)
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(Killed):
                return self._create_apart(request)
        return self._create_apart(request)

    def _create_apart(self, request: CreateRequest) -> Launched:
        try:
            work, more = _work(lambda: self.create_here(request)), partial(self.start_here, request.container_id, False)
            values, descriptors, self._kept = apart_kept(self._bundle, work, more)
            return _launched(values, descriptors)
        except Killed:
            self.delete(request.container_id)  # what it had made so far
            raise

    def _create_by(self, worker: Worker, request: CreateRequest) -> Launched:
        packet = {
            "root": self._root,
            "driver": self._runtime.cgroup_driver,
            "bundle": self._bundle,
            "id": request.container_id,
            "rootfs": [[mount["type"], mount["source"], mount["options"]] for mount in request.rootfs],
            "no_pivot": request.no_pivot,
            "no_new_keyring": request.no_new_keyring,
        }
        try:
            values, descriptors = worker.give(packet, [0, 1, 2, *(request.stdio or ())])
        except Killed:
            self.delete(request.container_id)  # what it had made so far
            raise
        self._kept = worker
        return _launched(values, descriptors)

    def create_here(self, request: CreateRequest, waiting: WaitingInit | None = None) -> Launched:
        """Make it in this process; ``waiting`` becomes its init, if it suits."""
        self._runtime.waiting = waiting
        mounts = [RootfsMount(m["type"], m["source"], tuple(m["options"])) for m in request.rootfs]
        with _translated("OCI runtime create failed: "):
            return self._runtime.create(
                request.container_id,
                request.bundle,
                stdio=request.stdio,
                rootfs=mounts,
                no_pivot=request.no_pivot,
                no_new_keyring=request.no_new_keyring,
            )

    def restore(self, request: CreateRequest, path: str) -> Launched:
        """By our command line, with the rootfs where criu finds it."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.dismiss()
        return self._by_command(f"restore {request.container_id}", request.bundle).restore(request, path)

    def start(self, container_id: str, *, resume: bool = False) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            try:
                kept.ask()
                return
            except Killed:
                resume = True
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(Killed):
                apart(self._bundle, partial(self.start_here, container_id, resume))
                return
            resume = True
        apart(self._bundle, partial(self.start_here, container_id, resume))

    def start_here(self, container_id: str, resume: bool) -> Answer:
        """Start it in this process."""
        with _translated("OCI runtime start failed: "):
            self._runtime.start(container_id, resume=resume)
        return {}, ()

    def adopt_init(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.dismiss()

    def exec(self, container_id: str, process: dict[str, Any], stdio: Stdio | None) -> Launched:
        return _launched(*apart(self._bundle, _work(lambda: self._exec(container_id, process, stdio))))

    def _exec(self, container_id: str, process: dict[str, Any], stdio: Stdio | None) -> Launched:
        with _translated("OCI runtime exec failed: "):
            return self._runtime.exec(container_id, process, stdio=stdio)

    def kill(self, container_id: str, signal: int, everyone: bool) -> None:
        with _translated():
            self._runtime.kill(container_id, signal, all=everyone)

    def delete(self, container_id: str) -> None:
        with _translated():
            self._runtime.delete(container_id, force=True)
        if Bundle(self._bundle).restored():
            from shim import mounts

            mounts.unmount_rootfs(f"{self._bundle}/rootfs")

    def pids(self, container_id: str) -> Sequence[int]:
        with _translated():
            return self._runtime.pids(container_id)

    def pause(self, container_id: str) -> None:
        with _translated():
            self._runtime.pause(container_id)

    def resume(self, container_id: str) -> None:
        with _translated():
            self._runtime.resume(container_id)

    def update(self, container_id: str, resources: dict[str, Any]) -> None:
        with _translated():
            self._runtime.update(container_id, resources)

    def checkpoint(self, container_id: str, path: str, options: Values) -> None:
        """By our command line: CRIU takes seconds and memory, which this process shall not grow by."""
        scratch = os.path.dirname(path)
        self._by_command(f"checkpoint {container_id}", scratch).checkpoint(container_id, path, options)

    def _by_command(self, what: str, scratch: str) -> CommandLine:
        from shim.commandline import CommandLine

        if shutil.which("criu") is None:
            raise errors.FailedPrecondition(f"cannot {what}: criu is not installed", hint="install the package criu")
        installed = f"{os.path.dirname(sys.executable)}/runc-py"
        program = installed if os.access(installed, os.X_OK) else "runc-py"
        return CommandLine(program, self._root, self._systemd, scratch, scratch, Children())

    def stats(self, container_id: str) -> dict[str, Any]:
        with _translated():
            return self._runtime.stats(container_id)

    def status(self, container_id: str) -> str:
        with _translated():
            return str(self._runtime.state(container_id)["status"])


def begin(
    packet: dict[str, Any], descriptors: list[int], waiting: WaitingInit | None
) -> tuple[str, Callable[[], Answer], Callable[[], Answer]]:
    """In a worker: the bundle, and what is to be done, create and start. See ``shim.worker``."""
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)  # the shim's own, which are open since it knows its bundle
        os.close(descriptor)
    bundle, container_id = packet["bundle"], packet["id"]
    rootfs = [{"type": kind, "source": source, "options": options} for kind, source, options in packet["rootfs"]]
    options = {"no_pivot_root": packet["no_pivot"], "no_new_keyring": packet["no_new_keyring"]}
    stdio = Stdio(*descriptors[3:]) if len(descriptors) > 3 else None
    runtime = InProcess(packet["root"], packet["driver"], bundle)
    create = _work(lambda: runtime.create_here(CreateRequest(container_id, bundle, stdio, rootfs, options), waiting))
    return bundle, create, partial(runtime.start_here, container_id, False)


def _work(launch: Callable[[], Launched]) -> Callable[[], Answer]:
    """``launch`` as work for a fork."""

    def work() -> Answer:
        pid, pidfd, console = launch()
        return {"pid": pid}, [pidfd] if console is None else [pidfd, console]

    return work


def _launched(values: dict[str, Any], descriptors: list[int]) -> Launched:
    """What such work came to, in the shim."""
    return Launched(values["pid"], descriptors[0], descriptors[1] if len(descriptors) > 1 else None)


def root_of(options: Values, address: str, namespace: str) -> str:
    """Where the runtime of ``options`` keeps its state: beside containerd's socket when nothing else is asked for."""
    if options["root"]:
        return f"{options['root']}/{namespace}"
    state = os.path.dirname(address) if address.startswith("/") else "/run/containerd"
    return f"{state}/runc/{namespace}"


def no_options() -> Values:
    """containerd.runc.v1.Options with nothing set."""
    return RUNC_OPTIONS.decode(b"")


def runtime_for(
    options: Values, root: str, bundle: str, scratch: str, children: Children, worker: Worker | None = None
) -> TaskRuntime:
    """The runtime that ``options`` (containerd.runc.v1.Options) names, with its state in ``root`` (see ``root_of``).

    ``scratch`` is a directory with a short path; ``children`` collects what ends while a runtime's program is awaited;
    ``worker`` is used or dismissed.
    """
    systemd = bool(options["systemd_cgroup"])
    with contextlib.suppress(FileExistsError):
        os.makedirs(root, mode=0o711)
    if os.path.basename(options["binary_name"]) in OWN_NAMES:
        return InProcess(root, "systemd" if systemd else "cgroupfs", bundle, worker)
    if worker is not None:
        worker.dismiss()
    from shim.commandline import CommandLine

    return CommandLine(options["binary_name"], root, systemd, bundle, scratch, children)
