"""The files that a shim writes into a bundle, so that another shim can take over where it stopped.

Rule: a file is complete or not there (temporary name, then rename). Nothing here is fsynced but exit records: the
bundle lives on a file system that does not survive a reboot, and neither do the processes it tells of.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import struct
import time
from typing import Any, NamedTuple

INIT = "init"
"""The name of the init process's records; no exec may have this id."""

ADDED, CREATED, STARTING, STARTED = "added", "created", "starting", "started"
"""Phases of a process. ``STARTING`` is on disk before the runtime is told, ``STARTED`` after the event is queued, so a
replacement shim finds no start that nobody will tell of."""

RESTORED = "restored"
"""The file that tells of a container made of a checkpoint."""

_EVICTION_ROUNDS = 2000
_FLOCK = struct.Struct("@hhqqi4x")
LOCK = "shim.lock"
SHIM_BYTE, _HELPER_BYTE = 0, 1
"""What of that file the shim has locked, and what a fork of it that runs the runtime."""


class ExitRecord(NamedTuple):
    """How a process ended: ``exit_status`` as a shell would show it, ``exited_at`` in ns since the epoch."""

    pid: int
    exit_status: int
    exited_at: int


class ProcessRecord(NamedTuple):
    """What a replacement shim must know of a process. ``start_ticks`` tells a pid from its reuse."""

    exec_id: str
    pid: int
    start_ticks: int
    stdin: str
    stdout: str
    stderr: str
    terminal: bool
    spec: dict[str, Any] | None
    phase: str = STARTED


def record_name(exec_id: str) -> str:
    """The file name of a process's records; the exec id of init is empty."""
    return exec_id or INIT


def write_atomically(path: str, data: bytes, *, durable: bool = False) -> None:
    """Put ``data`` at ``path`` all at once; ``durable`` waits for the disk."""
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, path)


def read_json(path: str) -> Any:
    """The JSON in ``path``; ``None`` when there is no such file or it is no JSON."""
    try:
        with open(path, "rb") as file:
            return json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _write_json(path: str, value: Any) -> None:
    write_atomically(path, json.dumps(value, separators=(",", ":")).encode())


class Bundle:
    """One bundle directory."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def spec(self) -> dict[str, Any]:
        """The OCI spec in ``config.json``. Raises ``OSError`` or ``ValueError``."""
        with open(f"{self.path}/config.json", "rb") as file:
            spec = json.loads(file.read())
        if not isinstance(spec, dict):
            raise ValueError(f"{self.path}/config.json is not a JSON object")
        return spec

    def has_pid_namespace(self) -> bool:
        """Whether all of the container ends with its init. Read when that matters: the spec may be large."""
        spec = read_json(f"{self.path}/config.json")
        linux = spec.get("linux") if isinstance(spec, dict) else None
        namespaces = (linux or {}).get("namespaces") or []
        return any(entry.get("type") == "pid" and not entry.get("path") for entry in namespaces)

    def write_options(self, options: dict[str, Any]) -> None:
        """Record what Create asked for."""
        _write_json(f"{self.path}/options.json", options)

    def read_options(self) -> dict[str, Any] | None:
        """What Create asked for; ``None`` when it never came to that."""
        value = read_json(f"{self.path}/options.json")
        return value if isinstance(value, dict) else None

    def mark_restored(self) -> None:
        """Note that init comes from a checkpoint: it runs without being started."""
        os.close(os.open(f"{self.path}/{RESTORED}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def restored(self) -> bool:
        """Whether init comes from a checkpoint."""
        return os.path.exists(f"{self.path}/{RESTORED}")

    def write_process(self, record: ProcessRecord) -> None:
        """Record a process that has a pid now (or, with pid 0, an exec that is only added)."""
        directory = f"{self.path}/processes"
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        _write_json(f"{directory}/{record_name(record.exec_id)}", record)

    def read_processes(self) -> list[ProcessRecord]:
        """Every recorded process, init first."""
        directory = f"{self.path}/processes"
        try:
            names = sorted(os.listdir(directory))
        except FileNotFoundError:
            return []
        values = [read_json(f"{directory}/{name}") for name in names if not name.endswith(".new")]
        records = [ProcessRecord(*value) for value in values if isinstance(value, list)]
        return sorted(records, key=lambda record: record.exec_id != "")

    def write_exit(self, exec_id: str, record: ExitRecord) -> None:
        """Put an exit record on disk. Nobody is told of an exit before this returns."""
        path = f"{self.path}/exits/{record_name(exec_id)}"
        data = json.dumps(record._asdict(), separators=(",", ":")).encode()
        try:
            write_atomically(path, data, durable=True)
        except FileNotFoundError:
            os.mkdir(f"{self.path}/exits", 0o700)
            write_atomically(path, data, durable=True)

    def read_exit(self, exec_id: str) -> ExitRecord | None:
        """The exit record of a process, if it has ended."""
        value = read_json(f"{self.path}/exits/{record_name(exec_id)}")
        if not isinstance(value, dict):
            return None
        return ExitRecord(int(value["pid"]), int(value["exit_status"]), int(value["exited_at"]))

    def forget_process(self, exec_id: str) -> None:
        """Remove the records of an exec that was deleted."""
        for directory in ("processes", "exits"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(f"{self.path}/{directory}/{record_name(exec_id)}")

    def write_pid(self, name: str, pid: int) -> None:
        """``init.pid`` and ``shim.pid``: a decimal number without newline, as containerd's shims write it."""
        write_atomically(f"{self.path}/{name}", str(pid).encode())

    def read_pid(self, name: str) -> int:
        """The pid in ``init.pid`` or ``shim.pid``; 0 when there is none."""
        try:
            with open(f"{self.path}/{name}", "rb") as file:
                return int(file.read())
        except (FileNotFoundError, ValueError):
            return 0


def claim(path: str) -> None:
    """Be the one shim of the bundle ``path`` for the rest of this process's life.

    Two shims that pump the same pipes would write over each other's output, so a predecessor that was only thought dead
    (or whose zygote died before it could tell of it) is killed, and so is a fork in which it ran the runtime. The lock
    is POSIX's: the kernel knows its holder and takes it back at any death, and children do not inherit it. Raises
    ``TimeoutError`` when the other does not die, ``FileNotFoundError`` when the bundle is being removed.
    """
    lock = os.open(f"{path}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(_EVICTION_ROUNDS):
        holder = 0
        if _locked(lock, SHIM_BYTE):
            holder = _holder(lock, _HELPER_BYTE)
            if not holder:
                check_name(f"{path}/{LOCK}", lock)
                return  # never closed: closing any descriptor of the file would give the lock up
        for other in {holder or _holder(lock, SHIM_BYTE)} - {0}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        time.sleep(0.005)
    os.close(lock)
    raise TimeoutError(f"the shim that holds {path}/shim.lock does not die")


def give_up(path: str) -> None:
    """Be the bundle's shim no more: closing any descriptor of the file gives up all of a process's locks on it."""
    os.close(os.open(f"{path}/{LOCK}", os.O_RDWR | os.O_CLOEXEC))


def check_name(path: str, lock: int) -> None:
    """Raises ``FileNotFoundError`` unless ``path`` is still the name of the locked file.

    Whoever removes a bundle renames it and then kills who holds its lock: who locked too late sees the name gone."""
    found, expected = os.stat(path), os.fstat(lock)
    if (found.st_dev, found.st_ino) != (expected.st_dev, expected.st_ino):
        raise FileNotFoundError(errno.ENOENT, "the bundle has been removed", path)


def lock_helper(path: str) -> None:
    """Have the next shim of the bundle kill this process, a fork of the present one, should both live so long."""
    lock = os.open(f"{path}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _locked(lock, _HELPER_BYTE)


def _locked(lock: int, byte: int) -> bool:
    """Whether this process holds the lock on ``byte`` now."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True


def _holder(lock: int, byte: int) -> int:
    """The pid of the process that holds a lock on ``byte`` (fcntl(2), ``F_GETLK``); 0 when nobody does any more."""
    answer = fcntl.fcntl(lock, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    kind, *_, pid = _FLOCK.unpack(answer)
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def start_ticks(pid: int) -> int:
    """When ``pid`` started, in clock ticks since boot (proc(5) ``stat`` field 22); 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0
