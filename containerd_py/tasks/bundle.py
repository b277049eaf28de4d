"""Bundle directories: ``<state>/io.containerd.runtime.v2.task/<namespace>/<id>/``.

Rule: a bundle is made before its shim and removed after it, so whatever a kill -9 leaves can be found by listing
directories. It goes all at once: what is being removed has another name (``.<id>``). All names derive from namespace
and id (docs/internals.md, "Bundle files").
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import signal
import struct
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from oci import errors

BUNDLES = "io.containerd.runtime.v2.task"
INIT = "init"
"""Name of the container's own process among the exit records."""

IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
IDENTIFIER_LENGTH = 76
"""containerd's rule for namespaces, containers and execs (pkg/identifiers); it also makes them safe as file names."""

LOCK = "shim.lock"
"""Byte 0 is locked by the bundle's shim, byte 1 by a fork in which that runs the runtime."""

_FLOCK = struct.Struct("@hhqqi4x")
MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def check_identifier(what: str, name: str) -> None:
    """Raises ``InvalidArgument`` unless ``name`` is an identifier in containerd's sense."""
    if len(name) > IDENTIFIER_LENGTH or IDENTIFIER.fullmatch(name) is None:
        raise errors.InvalidArgument(
            f"{what} {name!r} is not an identifier",
            hint=f"letters, digits and single . _ - between them, at most {IDENTIFIER_LENGTH} characters",
        )


class ExitRecord(msgspec.Struct, frozen=True):
    """How a process ended; ``exited_at`` in nanoseconds since the epoch."""

    pid: int
    exit_status: int
    exited_at: int


class Endpoint(msgspec.Struct, frozen=True):
    """Where a foreign shim listens (``bootstrap.json``)."""

    version: int
    address: str
    protocol: str = "ttrpc"


class Bundle(NamedTuple):
    """Paths of one bundle."""

    path: str
    namespace: str
    id: str

    @property
    def rootfs(self) -> str:
        return f"{self.path}/rootfs"

    def create(self, spec: bytes) -> None:
        """Make the directory with ``config.json``. Raises ``AlreadyExists``."""
        try:
            os.mkdir(self.path, 0o711)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), 0o711, exist_ok=True)
            os.mkdir(self.path, 0o711)
        except FileExistsError:
            raise errors.AlreadyExists(f"task {self.id}: its bundle {self.path} exists already") from None
        os.mkdir(self.rootfs, 0o711)
        self.write("config.json", spec)

    def write(self, name: str, data: bytes) -> None:
        """Write a file that is either whole or absent."""
        folder, _, last = f"{self.path}/{name}".rpartition("/")
        temporary = f"{folder}/.{last}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        os.rename(temporary, f"{self.path}/{name}")

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None when there is none."""
        try:
            with open(f"{self.path}/{name}", "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def exit_record(self, exec_id: str = "") -> ExitRecord | None:
        """The exit record of init or of an exec; None while there is none."""
        data = self.read(f"exits/{exec_id or INIT}")
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=ExitRecord)
        except msgspec.DecodeError:
            return None

    def write_exit_record(self, record: ExitRecord) -> None:
        """Write init's exit record; only for a container whose shim cannot be replaced."""
        os.makedirs(f"{self.path}/exits", 0o700, exist_ok=True)
        self.write(f"exits/{INIT}", msgspec.json.encode(record))

    def init_pid(self) -> int:
        """Pid of the container's first process; 0 when none was made."""
        data = self.read("init.pid") or b""
        return int(data) if data.strip().isdigit() else 0

    def endpoint(self) -> Endpoint | None:
        """Where the shim said it listens: ``bootstrap.json`` (2.x) or ``address``; None when it never did."""
        data = self.read("bootstrap.json")
        if data is not None:
            try:
                return msgspec.json.decode(data, type=Endpoint)
            except msgspec.DecodeError:
                return None
        data = self.read("address")
        return Endpoint(2, data.decode().strip()) if data else None

    def remove(self) -> None:
        """Remove the directory; a shim of ours that still lives for it is killed. Idempotent.

        The name goes first and the shim after it: one that comes too late to be killed finds that the name is gone.
        """
        folder, _, name = self.path.rpartition("/")
        grave = f"{folder}/.{name}"
        if os.path.lexists(grave):
            self._bury(grave)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, grave)
            for holder in lock_holders(f"{grave}/{LOCK}"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(holder, signal.SIGKILL)
            self._bury(grave)

    def _bury(self, grave: str) -> None:
        """Unmount what a foreign shim may have left on the rootfs and remove all else.

        An empty directory is the usual case and costs one system call more; files in a rootfs that cannot be
        unmounted are never touched.
        """
        rootfs = f"{grave}/rootfs"
        try:
            os.rmdir(rootfs)
        except FileNotFoundError:
            pass
        except OSError:
            while _libc.umount2(os.fsencode(rootfs), MNT_DETACH) == 0:
                pass
            os.rmdir(rootfs)
        shutil.rmtree(grave, ignore_errors=True)
        if os.path.lexists(grave):
            raise errors.Internal(f"task {self.id}: its bundle {grave} cannot be removed")


class BundleStore(NamedTuple):
    """All bundles below one state directory."""

    state: str

    def bundle(self, namespace: str, id: str) -> Bundle:
        """Raises ``InvalidArgument`` for names that are no identifiers (they become paths)."""
        check_identifier("namespace", namespace)
        check_identifier("container id", id)
        return Bundle(f"{self.state}/{BUNDLES}/{namespace}/{id}", namespace, id)

    def shim_socket(self, namespace: str, id: str) -> str:
        """Where the shim of our own runtime listens: derived, so that a sweep knows it without a record."""
        digest = hashlib.sha256(f"{namespace}/{id}".encode()).hexdigest()
        return f"{self.state}/s/{digest[:32]}"

    def scan(self) -> Iterator[Bundle]:
        """Every bundle there is; what was being removed goes on the way."""
        top = f"{self.state}/{BUNDLES}"
        for namespace in _directories(top):
            for id in _directories(f"{top}/{namespace}"):
                bundle = Bundle(f"{top}/{namespace}/{id.removeprefix('.')}", namespace, id.removeprefix("."))
                if id == bundle.id:
                    yield bundle
                elif not os.path.lexists(bundle.path):
                    bundle.remove()

    def sweep_sockets(self, keep: set[str]) -> None:
        """Remove shim sockets that belong to no bundle."""
        folder = f"{self.state}/s"
        for name in os.listdir(folder):
            if f"{folder}/{name}" not in keep:
                os.unlink(f"{folder}/{name}")


def lock_holders(path: str) -> list[int]:
    """Pids of the processes that hold locks on the first two bytes of ``path`` (fcntl(2), ``F_GETLK``)."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        asked = (_FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0) for byte in (0, 1))
        answers = [_FLOCK.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, question)) for question in asked]
    finally:
        os.close(lock)
    return [int(pid) for kind, *_, pid in answers if kind != fcntl.F_UNLCK and pid > 0]


def _directories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
