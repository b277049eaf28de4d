"""A systemd for machines without one: it speaks D-Bus to one client after the other and keeps cgroups as systemd does.

Rule: the wire is jeepney's, so that a mistake in our own D-Bus cannot hide in its mirror image; what it does with
units is told by ``org.freedesktop.systemd1(5)``. It is strict where systemd is: the right user, Hello first on a bus,
a destination there and nowhere else, known units only. It runs in a process of its own and writes what it was asked,
one JSON list (method, arguments) a line, to ``log``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jeepney  # type: ignore[import-untyped] # it has none
from jeepney.low_level import HeaderFields, Message, Parser  # type: ignore[import-untyped] # it has none

_MANAGER = "org.freedesktop.systemd1.Manager"
_JOBS = "/org/freedesktop/systemd1/job"
_ADDRESS = jeepney.DBusAddress("/org/freedesktop/systemd1", "org.freedesktop.systemd1", _MANAGER)
_WRITABLE = {"MemoryMax", "MemoryLow", "MemorySwapMax", "MemoryLimit", "TasksMax", "CPUWeight", "CPUShares"}
_WRITABLE |= {"CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec"}


class FakeSystemd:
    """``private`` is a socket of systemd itself; without it the socket is a bus's. A context manager."""

    def __init__(self, directory: Path, hierarchies: Iterable[str], *, private: bool) -> None:
        self.path = directory / ("private" if private else "bus")
        self.log = directory / "asked"
        self.log.touch()
        self._hierarchies = list(hierarchies)
        self._private = private
        self._units: dict[str, list[str]] = {}
        self._jobs = 0
        self._serial = 0
        self._hello = private
        self._pid = 0

    def __enter__(self) -> FakeSystemd:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen(8)
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                self._serve(listener)
            finally:
                os._exit(status)
        listener.close()
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def asked(self, method: str) -> list[list[Any]]:
        """The arguments of each call of a method, oldest first."""
        rows = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [arguments for name, arguments in rows if name == method]

    def property(self, unit: str, name: str) -> Any:
        """What a property of a unit was last set to; None when it never was."""
        found = None
        for asked in self.asked("StartTransientUnit") + self.asked("SetUnitProperties"):
            if asked[0] == unit:
                found = {key: value[1] for key, value in asked[2]}.get(name, found)
        return found

    def _serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionError):
                self._hello = self._private
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", credentials)
        data = b""
        while b"BEGIN\r\n" not in data:
            chunk = connection.recv(4096)
            if not chunk:
                return
            data += chunk
        greeting, _, rest = data.partition(b"BEGIN\r\n")
        if greeting != b"\0AUTH EXTERNAL " + str(uid).encode().hex().encode() + b"\r\n":
            connection.sendall(b"REJECTED EXTERNAL\r\n")
            return
        connection.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
        parser = Parser()
        while True:
            for message in parser.feed(rest):
                self._answer(connection, message)
            rest = connection.recv(65536)
            if not rest:
                return

    def _send(self, connection: socket.socket, message: Message) -> None:
        self._serial += 1
        connection.sendall(message.serialise(self._serial))

    def _answer(self, connection: socket.socket, call: Message) -> None:
        fields = call.header.fields
        method = fields[HeaderFields.member]
        if (HeaderFields.destination in fields) is self._private or (not self._hello and method != "Hello"):
            self._refuse(connection, call, "org.freedesktop.DBus.Error.AccessDenied")
            return
        with self.log.open("a") as log:
            log.write(json.dumps([method, call.body]) + "\n")
        if method == "Get":
            self._send(connection, jeepney.new_method_return(call, "v", (("s", "252.38-1~deb12u1"),)))
        elif method == "Hello":
            self._hello = True
            self._send(connection, jeepney.new_method_return(call, "s", (":1.5",)))
            self._send(connection, jeepney.new_signal(_ADDRESS, "NameAcquired", "s", (":1.5",)))
        elif method in ("Subscribe", "SetUnitProperties", "ResetFailedUnit"):
            self._without_job(connection, call, method)
        elif method == "StartTransientUnit":
            self._start(connection, call)
        elif method == "StopUnit":
            self._stop(connection, call)
        else:
            self._refuse(connection, call, "org.freedesktop.DBus.Error.UnknownMethod")

    def _refuse(self, connection: socket.socket, call: Message, name: str) -> None:
        self._send(connection, jeepney.new_error(call, name, "s", (f"no: {name.rpartition('.')[2]}",)))

    def _without_job(self, connection: socket.socket, call: Message, method: str) -> None:
        if method != "Subscribe" and call.body[0] not in self._units:
            self._refuse(connection, call, "org.freedesktop.systemd1.NoSuchUnit")
        elif method == "SetUnitProperties" and not {name for name, _ in call.body[2]} <= _WRITABLE:
            self._refuse(connection, call, "org.freedesktop.DBus.Error.PropertyReadOnly")
        else:
            self._send(connection, jeepney.new_method_return(call))

    def _job(self, connection: socket.socket, call: Message, unit: str) -> None:
        """The answer, with another's job done before it and a signal of the job that may overtake the answer."""
        self._jobs += 1
        job = f"{_JOBS}/{self._jobs}"
        others = (7000, f"{_JOBS}/7000", "other.service", "failed")
        done = jeepney.new_signal(_ADDRESS, "JobRemoved", "uoss", (self._jobs, job, unit, "done"))
        answer = jeepney.new_method_return(call, "o", (job,))
        self._send(connection, jeepney.new_signal(_ADDRESS, "JobRemoved", "uoss", others))
        for message in (done, answer) if self._jobs % 2 else (answer, done):
            self._send(connection, message)

    def _start(self, connection: socket.socket, call: Message) -> None:
        unit, mode, properties, _ = call.body
        values = {name: value[1] for name, value in properties}
        if unit in self._units or mode != "replace" or not values.get("PIDs") or not values.get("Delegate"):
            self._refuse(connection, call, "org.freedesktop.systemd1.UnitExists")
            return
        words = values["Slice"].removesuffix(".slice").split("-")
        slices = "".join(f"/{'-'.join(words[: count + 1])}.slice" for count in range(len(words)))
        self._units[unit] = [f"{root}{slices}/{unit}" for root in self._hierarchies]
        for directory in self._units[unit]:
            os.makedirs(directory)
            for pid in values["PIDs"]:
                Path(directory, "cgroup.procs").write_text(str(pid))
        self._job(connection, call, unit)

    def _stop(self, connection: socket.socket, call: Message) -> None:
        unit = call.body[0]
        if unit not in self._units:
            self._refuse(connection, call, "org.freedesktop.systemd1.NoSuchUnit")
            return
        for directory in self._units.pop(unit):
            self._remove(Path(directory))
        self._job(connection, call, unit)

    @staticmethod
    def _remove(directory: Path) -> None:
        end = time.monotonic() + 10
        while directory.exists() and time.monotonic() < end:
            for path in sorted(directory.rglob("cgroup.procs"), reverse=True):
                for pid in path.read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            inner = sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True)
            for path in (*inner, directory):
                with suppress(OSError):
                    path.rmdir()
            time.sleep(0.005)
        with suppress(OSError):
            directory.parent.rmdir()  # the slice goes with its last unit
