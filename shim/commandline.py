"""Any OCI runtime by its command line: runc, crun, runsc.

Rule: the shim waits for each command (they take tens of milliseconds), and a failed one is reported in the runtime's
own words, taken from its JSON log. The rootfs is mounted at ``<bundle>/rootfs``, as these runtimes expect.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal as signals
import socket
from collections.abc import Sequence
from typing import Any

from oci import errors
from protos.wire import Values
from runc_py.runtime import Launched, Stdio
from shim import mounts
from shim.exits import Children
from shim.runtimes import CreateRequest

_CONSOLE_SECONDS = 10.0
_DEFAULTS = (signals.SIGPIPE, signals.SIGXFSZ, signals.SIGTERM, signals.SIGINT, signals.SIGHUP)
"""What Python or the shim ignores: a runtime that leaves it so would give it to the container's processes."""
_CHECKPOINT_SWITCHES = (
    ("tcp-established", "open_tcp"),
    ("ext-unix-sk", "external_unix_sockets"),
    ("shell-job", "terminal"),
    ("file-locks", "file_locks"),
)


class CommandLine:
    """The runtime ``binary`` with its state in ``root``, for the container of ``bundle``."""

    def __init__(self, binary: str, root: str, systemd: bool, bundle: str, scratch: str, children: Children) -> None:
        self._bundle = bundle
        self._binary = binary
        self._root = root
        self._systemd = systemd
        self._scratch = scratch
        self._children = children

    def _run(
        self, arguments: Sequence[str], stdio: Stdio | None = None, stdin: bytes = b"", *, reap: bool = False
    ) -> bytes:
        """Run one command to its end; gives its output unless ``stdio`` is the container's.

        ``reap``: collect what else ends meanwhile. Not while the runtime makes a process, whose pid is not known yet.
        """
        log = f"{self._bundle}/log.json"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log)
        command = [self._binary, "--root", self._root, "--log", log, "--log-format", "json"]
        if self._systemd:
            command.append("--systemd-cgroup")
        source = _readable(stdin)
        told = os.memfd_create("output", os.MFD_CLOEXEC)  # a pipe would have to be read while children are awaited
        used = stdio or Stdio(source, told, told)
        actions: list[tuple[int, int, int]] = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(used)]
        try:
            pid = os.posix_spawnp(
                self._binary,
                [*command, *arguments],
                os.environ,
                file_actions=actions,
                setsigmask=[],
                setsigdef=_DEFAULTS,
            )
        except FileNotFoundError:
            os.close(told)
            raise errors.NotFound(
                f"OCI runtime {self._binary!r} is not installed", hint="install it, or use the default runtime"
            ) from None
        finally:
            os.close(source)
        status = self._children.wait(pid) if reap else os.waitpid(pid, 0)[1]
        output = _read_all(told)
        os.close(told)
        if status != 0:
            raise self._error(arguments, log, output)
        return output

    def _error(self, arguments: Sequence[str], log: str, output: bytes) -> errors.GantryError:
        verb = next((word for word in arguments if not word.startswith("-")), "command")
        message = _last_error(log) or output.decode(errors="replace").strip() or "it gave no reason"
        text = f"OCI runtime {verb} failed: {message}"
        if "does not exist" in message and "container" in message:
            return errors.NotFound(text)
        if "process already finished" in message or "container not running" in message:
            return errors.NotFound(f"process already finished: {text}")
        return errors.GantryError(text)

    def create(self, request: CreateRequest) -> Launched:
        rootfs = f"{self._bundle}/rootfs"
        mounts.mount_rootfs(rootfs, request.rootfs)
        flags = ["--no-pivot"] * request.no_pivot + ["--no-new-keyring"] * request.no_new_keyring
        try:
            verb = ["create", "--bundle", self._bundle, *flags]
            return self._launch(request.stdio, verb, request.container_id)
        except BaseException:
            mounts.unmount_rootfs(rootfs)
            raise

    def restore(self, request: CreateRequest, path: str) -> Launched:
        rootfs = f"{self._bundle}/rootfs"
        mounts.mount_rootfs(rootfs, request.rootfs)
        try:
            verb = ["restore", "--detach", "--bundle", self._bundle, "--image-path", path, "--work-path", self._bundle]
            return self._launch(request.stdio, verb, request.container_id)
        except BaseException:
            mounts.unmount_rootfs(rootfs)
            raise

    def _launch(self, stdio: Stdio | None, verb: list[str], container_id: str) -> Launched:
        pid_file = f"{self._bundle}/runtime.pid"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pid_file)
        command = [*verb, "--pid-file", pid_file]
        console: int | None = None
        if stdio is None:
            path = f"{self._scratch}/pty{os.getpid()}"
            with _console_socket(path) as listener:
                self._run([*command, "--console-socket", path, container_id])
                console = _receive_console(listener)
        else:
            self._run([*command, container_id], stdio)
        with open(pid_file, "rb") as file:
            pid = int(file.read())
        return Launched(pid, os.pidfd_open(pid), console)

    def start(self, container_id: str, *, resume: bool = False) -> None:
        if not resume or self.status(container_id) == "created":
            self._run(["start", container_id])

    def adopt_init(self) -> None:
        """It is: the runtime's command has ended."""

    def exec(self, container_id: str, process: dict[str, Any], stdio: Stdio | None) -> Launched:
        path = f"{self._bundle}/exec-process.json"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(process, file)
        try:
            return self._launch(stdio, ["exec", "--process", path, "--detach"], container_id)
        finally:
            os.unlink(path)

    def kill(self, container_id: str, signal: int, everyone: bool) -> None:
        self._run(["kill", *["--all"] * everyone, container_id, str(signal)])

    def delete(self, container_id: str) -> None:
        with contextlib.suppress(errors.NotFound):
            self._run(["delete", "--force", container_id], reap=True)
        mounts.unmount_rootfs(f"{self._bundle}/rootfs")

    def pids(self, container_id: str) -> Sequence[int]:
        output = self._run(["ps", "--format", "json", container_id])
        return [int(pid) for pid in json.loads(output) or []]

    def pause(self, container_id: str) -> None:
        self._run(["pause", container_id])

    def resume(self, container_id: str) -> None:
        self._run(["resume", container_id])

    def update(self, container_id: str, resources: dict[str, Any]) -> None:
        self._run(["update", "--resources", "-", container_id], stdin=json.dumps(resources).encode())

    def checkpoint(self, container_id: str, path: str, options: Values) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)
        flags = [f"--{flag}" for flag, name in _CHECKPOINT_SWITCHES if options[name]]
        flags += [] if options["exit"] else ["--leave-running"]
        for flag, name in (("--work-path", "work_path"), ("--parent-path", "parent_path")):
            flags += [flag, options[name]] if options[name] else []
        flags += ["--manage-cgroups-mode", options["cgroups_mode"]] if options["cgroups_mode"] else []
        flags += [word for name in options["empty_namespaces"] for word in ("--empty-ns", name)]
        self._run(["checkpoint", "--image-path", path, *flags, container_id])

    def stats(self, container_id: str) -> dict[str, Any]:
        value = json.loads(self._run(["events", "--stats", container_id]))
        data = value.get("data")
        if not isinstance(data, dict):
            raise errors.Internal(f"OCI runtime {self._binary!r} gave statistics without data")
        return data

    def status(self, container_id: str) -> str:
        return str(json.loads(self._run(["state", container_id]))["status"])


def _readable(data: bytes) -> int:
    """A descriptor from which ``data`` can be read; /dev/null for nothing."""
    if not data:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    file = os.memfd_create("input", os.MFD_CLOEXEC)
    os.write(file, data)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _read_all(descriptor: int) -> bytes:
    """What has been written to the file ``descriptor``."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    chunks = []
    while chunk := os.read(descriptor, 65536):
        chunks.append(chunk)
    return b"".join(chunks)


def _last_error(log: str) -> str:
    """The last message in a runtime's JSON log."""
    try:
        with open(log, "rb") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        with contextlib.suppress(ValueError, AttributeError):
            message = json.loads(line).get("msg")
            if message:
                return str(message)
    return ""


@contextlib.contextmanager
def _console_socket(path: str) -> Any:
    """A listening socket to which the runtime sends the pty's master."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(1)
        listener.settimeout(_CONSOLE_SECONDS)
        try:
            yield listener
        finally:
            os.unlink(path)


def _receive_console(listener: socket.socket) -> int:
    peer, _ = listener.accept()
    with peer:
        peer.settimeout(_CONSOLE_SECONDS)
        _, descriptors, _, _ = socket.recv_fds(peer, 4096, 1, socket.MSG_CMSG_CLOEXEC)
    if not descriptors:
        raise errors.Internal("the OCI runtime sent no terminal")
    return descriptors[0]
