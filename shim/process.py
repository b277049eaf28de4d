"""One process of a container: init, or an exec.

Rule: it knows its own life (added → created → running → stopped) and its io; what an exit means for others is the
container's business.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

from oci import errors
from protos.shim_messages import STATUS_CREATED, STATUS_RUNNING, STATUS_STOPPED, timestamp
from protos.wire import Values
from runc_py.runtime import Launched
from shim.bundle import ADDED, ExitRecord, ProcessRecord, start_ticks
from shim.io import ProcessIO
from shim.server import Deferred
from shim.stdio import Uris


class Process:
    """A process; ``exec_id`` is empty for init, ``spec`` is an exec's OCI process object."""

    def __init__(self, exec_id: str, uris: Uris, spec: dict[str, Any] | None = None) -> None:
        self.exec_id = exec_id
        self.uris = uris
        self.spec = spec
        self.pid = 0
        self.pidfd = -1
        self.status = STATUS_CREATED
        self.is_child = True
        self.phase = ADDED
        self.io: ProcessIO | None = None
        self.exit: ExitRecord | None = None
        self._waiting: list[Deferred] = []

    def launched(self, launched: Launched) -> None:
        """The runtime has started it."""
        self.pid = launched.pid
        self.pidfd = launched.pidfd
        assert self.io is not None
        self.io.launched(launched.console)

    def record(self) -> ProcessRecord:
        """What a replacement shim must know."""
        ticks = start_ticks(self.pid) if self.pid else 0
        return ProcessRecord(self.exec_id, self.pid, ticks, *self.uris, self.spec, self.phase)

    def parked(self, *, in_use: bool = False) -> dict[str, int]:
        """Descriptors for the keeper, by name: ``pidfd`` … for init, ``exec.<id>/pidfd`` … for an exec.

        ``in_use``: only those that are still open.
        """
        held: dict[str, int] = {}
        if self.io is not None:
            held = self.io.in_use() if in_use else self.io.parked()
        if self.pidfd >= 0:
            held["pidfd"] = self.pidfd
        return {parked_name(self.exec_id, name): descriptor for name, descriptor in held.items()}

    @property
    def running(self) -> bool:
        """Whether there is a living process."""
        return self.pid != 0 and self.exit is None

    def signal(self, number: int) -> None:
        """Signal exactly this process. Raises ``NotFound`` when it has ended."""
        if not self.running:
            raise errors.NotFound("process already finished")
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            raise errors.NotFound("process already finished") from None

    def ended(self, record: ExitRecord) -> None:
        """Its exit is on record: answer all who wait."""
        self.exit = record
        self.status = STATUS_STOPPED
        if self.io is not None:
            self.io.finish()
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.resolve(self.exit_values())

    def wait(self) -> Deferred:
        """Its exit, now or later."""
        deferred = Deferred()
        if self.exit is not None:
            deferred.resolve(self.exit_values())
        else:
            self._waiting.append(deferred)
        return deferred

    def exit_values(self) -> Values:
        """``exit_status`` and ``exited_at`` as messages have them; zeros while it runs."""
        if self.exit is None:
            return {"exit_status": 0, "exited_at": None}
        return {"exit_status": self.exit.exit_status, "exited_at": timestamp(self.exit.exited_at)}

    def state_values(self) -> Values:
        """The part of StateResponse that is the process's own."""
        return {
            "pid": self.pid,
            "status": self.status,
            "stdin": self.uris.stdin,
            "stdout": self.uris.stdout,
            "stderr": self.uris.stderr,
            "terminal": self.uris.terminal,
            "exec_id": self.exec_id,
            **self.exit_values(),
        }

    def started(self) -> None:
        """The program runs."""
        if self.exit is None:
            self.status = STATUS_RUNNING

    def close(self) -> None:
        """Let go of all descriptors."""
        if self.io is not None:
            self.io.close()
            self.io = None
        if self.pidfd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.pidfd)
            self.pidfd = -1


def parked_name(exec_id: str, name: str) -> str:
    """The keeper's name for a process's descriptor."""
    return f"exec.{exec_id}/{name}" if exec_id else name
