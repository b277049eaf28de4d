"""One container's state machine: its document, its lock, and everybody who waits for it.

Rule: the document changes only through ``update`` (store first, memory second), and only by the holder of ``lock``; the
exceptions are flags that say what is about to happen (``removing``, ``stopped_by_user``).

    created ──start──▶ running ⇄ paused
       ▲                  │ exit
       │                  ▼
       └─(failed start) exited ──restart policy──▶ restarting ──▶ running
                          │ remove / auto-remove
                          ▼
                       removing ──▶ gone            (dead: removal failed half-way)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from engine.containers.model import Container, RootfsMount
from engine.store import Store

if TYPE_CHECKING:
    from engine.containers.exec import ExecProcess

CREATING = "creating"
"""Status of a document whose create has not been answered yet: swept when the daemon dies before it is."""


class ExitStatus(NamedTuple):
    """How a run ended; ``error`` is for waiters (a failed start, a failed removal)."""

    code: int
    error: str = ""


class Machine:
    """The live side of one container."""

    def __init__(self, store: Store, doc: Container) -> None:
        self.doc = doc
        self.lock = asyncio.Lock()
        self.rootfs: tuple[RootfsMount, ...] | None = None
        self.recorded = False
        """Whether containerd has a record of this container (known, not guessed)."""
        self.removing = False
        self.task_left = False
        """Whether containerd may still have a task of a run that is over."""
        self.unsettled = False
        """Whether a start ended without anybody knowing whether it happened."""
        self.recorded_spec = b""
        self.log_start = (0, 0)
        """Bytes of stdout and stderr in the raw log before the current run."""
        self.ran_seconds = 0.0
        self.spared = False
        """Whether the last run ended under ``keep_on_exit``."""
        self.keep_on_exit = False
        """Set while a user's restart is between stop and start: no auto-remove, no restart policy."""
        self.restart_timer: asyncio.Task[None] | None = None
        self.backoff = 0.0
        self.execs: dict[str, ExecProcess] = {}
        self.listed: Any = None
        """What the list showed of this container last (``listing``)."""
        self.health: dict[str, Any] | None = None
        """``State.Health`` as inspect shows it; None without a health check."""
        self.run = 0
        self.ended_run = 0
        self._launched = asyncio.Event()
        self._store = store
        self._stop_waiters: set[asyncio.Future[ExitStatus]] = set()
        self._remove_waiters: set[asyncio.Future[ExitStatus]] = set()
        self._wakes: set[asyncio.Event] = set()

    @property
    def id(self) -> str:
        return self.doc.id

    def save(self) -> None:
        """Write the document as it is."""
        self._store.put("container", self.doc.id, msgspec.json.encode(self.doc))

    def update(self, **changes: Any) -> None:
        """Change fields of the document, on disk first."""
        doc = msgspec.structs.replace(self.doc, **changes)
        self._store.put("container", doc.id, msgspec.json.encode(doc))
        self.doc = doc

    def set_state(self, **changes: Any) -> None:
        """Change fields of the document's ``state``, on disk first."""
        self.update(state=msgspec.structs.replace(self.doc.state, **changes))

    def not_starting(self) -> None:
        """A start is taken back: however its task ends from here on, that is no end of a run. Idempotent."""
        if self.doc.starting:
            self.update(starting=False)

    def begin_run(self) -> None:
        """A start is under way: clients that attached before now belong to this run."""
        self.run = self.ended_run + 1
        self._launched.clear()

    def task_created(self) -> None:
        """The shim listens on the attach socket."""
        self._launched.set()
        self._wake_all()

    def end_run(self) -> None:
        """The run is over and its last byte is in the log: attached clients may finish."""
        self.ended_run = self.run
        self._launched.clear()
        self._wake_all()

    def current_run(self) -> int:
        """The run that a client attaching now sees: this one while there is one, else the next."""
        return self.run if self.run > self.ended_run else self.ended_run + 1

    def run_over(self, run: int) -> bool:
        """Whether ``run`` has ended, or can never come because the container is gone."""
        return self.ended_run >= run or self.doc.state.status == "gone"

    async def launched(self, run: int) -> bool:
        """Wait until the task of ``run`` exists; False if the run ended first."""
        with self.woken() as wake:
            while not self.run_over(run):
                if self.run == run and self._launched.is_set():
                    return True
                await wake.wait()
                wake.clear()
        return False

    @contextlib.contextmanager
    def woken(self, wake: asyncio.Event | None = None) -> Iterator[asyncio.Event]:
        """An event that is set at every step of the container's life."""
        wake = wake or asyncio.Event()
        self._wakes.add(wake)
        try:
            yield wake
        finally:
            self._wakes.discard(wake)

    def _wake_all(self) -> None:
        for wake in self._wakes:
            wake.set()

    def next_exit(self) -> asyncio.Future[ExitStatus]:
        """Resolves at the next exit (or failed start, or removal). Cancel it when no longer wanted."""
        return self._waiter(self._stop_waiters)

    def removal(self) -> asyncio.Future[ExitStatus]:
        """Resolves when the container is gone, or its removal failed."""
        return self._waiter(self._remove_waiters)

    @staticmethod
    def _waiter(waiters: set[asyncio.Future[ExitStatus]]) -> asyncio.Future[ExitStatus]:
        future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        waiters.add(future)
        future.add_done_callback(waiters.discard)
        return future

    def tell_exit(self, status: ExitStatus) -> None:
        """Answer everybody who waits for an exit."""
        self._tell(self._stop_waiters, status)

    def tell_removed(self, error: str = "") -> None:
        """Answer everybody who waits for the removal."""
        status = ExitStatus(self.doc.state.exit_code, error)
        self._tell(self._remove_waiters, status)
        if not error:
            self.doc = msgspec.structs.replace(self.doc, state=msgspec.structs.replace(self.doc.state, status="gone"))
            self._tell(self._stop_waiters, status)
            self._wake_all()

    @staticmethod
    def _tell(waiters: set[asyncio.Future[ExitStatus]], status: ExitStatus) -> None:
        for future in tuple(waiters):
            if not future.done():
                future.set_result(status)

    def cancel_restart(self) -> None:
        """Stop waiting for the next automatic start. Idempotent."""
        if self.restart_timer is not None and self.restart_timer is not asyncio.current_task():
            self.restart_timer.cancel()
        self.restart_timer = None
