"""When garbage is collected, and how it goes.

Rule: nothing is removed that became alive after it was marked. Marking reads one moment of the database without
keeping anybody from writing; each batch of removals is one transaction, and is dropped when anything was committed
since that moment by somebody else (then marking starts again, after ``ATTEMPTS`` of those with the lock held).

Collections run in a thread, never two at a time. One starts ``DELAY`` after something was deleted, when something
expires, and at once for ``collect`` (a delete with ``sync``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import structlog
from google.protobuf.message import Message

from containerd_py.gc.mark import Dead, mark
from containerd_py.interfaces import Exchange, Snapshotter
from containerd_py.metadata.database import Database, Transaction
from protos.containerd import event_types_pb2, images_pb2

DELAY = 0.5
"""Seconds from the first reason to a collection, so that a burst of deletes makes one."""
BATCH = 128
"""Rows removed in one transaction: about a millisecond in which others wait."""
ATTEMPTS = 4
LONGEST_SLEEP = 24 * 3600.0

_log = structlog.get_logger("containerd_py.gc")


class ContentFiles(Protocol):
    """What collection asks of the content store."""

    def writing(self) -> set[tuple[str, str]]: ...

    def remove_files(self, gone: Sequence[str]) -> None: ...

    def sweep_ingests(self) -> int: ...

    def cleanup(self) -> int: ...


class Mounted(Protocol):
    """What collection asks of the mount manager."""

    def cleanup(self) -> None: ...


class Report(NamedTuple):
    """What one collection removed, in rows, and how long it took."""

    content: int
    snapshots: int
    ingests: int
    seconds: float


class GarbageCollector:
    """The ``Collector`` of this process. Create it inside the event loop; ``attach`` the stores, then ``start``."""

    def __init__(self, database: Database, exchange: Exchange) -> None:
        self._database = database
        self._exchange = exchange
        self._content: ContentFiles | None = None
        self._snapshotters: Mapping[str, Snapshotter] = {}
        self._mounts: Mounted | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "gc")
        self._timer: asyncio.TimerHandle | None = None
        self._due = float("inf")
        self._running: asyncio.Future[None] | None = None
        self._closed = False
        self.last: Report | None = None

    def attach(
        self, content: ContentFiles, snapshotters: Mapping[str, Snapshotter], mounts: Mounted | None = None
    ) -> None:
        """Whose files go with the rows."""
        self._mounts = mounts
        self._content = content
        self._snapshotters = snapshotters

    def start(self) -> None:
        """Remove what a crash left, and collect soon."""
        self._submit(self._first)

    async def collect(self) -> None:
        """Everything that is garbage at this moment is gone, files too, when this returns."""
        await asyncio.shield(self._submit(self._collect))

    def schedule(self) -> None:
        self._on_loop(self._plan, DELAY)

    def wake_at(self, moment: int) -> None:
        self._on_loop(self._plan, max(0.0, (moment - time.time_ns()) / 1e9) + 0.01)

    async def close(self) -> None:
        """Let a running collection end; no other one starts."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _on_loop(self, call: Callable[[float], None], delay: float) -> None:
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            call(delay)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the next start collects
                self._loop.call_soon_threadsafe(call, delay)

    def _plan(self, delay: float) -> None:
        """Have a collection in ``delay`` seconds, or earlier if one is planned earlier."""
        due = self._loop.time() + min(delay, LONGEST_SLEEP)
        if self._closed or due >= self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_at(due, self._begin)

    def _begin(self) -> None:
        self._due = float("inf")
        self._timer = None
        self._submit(self._collect)

    def _submit(self, work: Callable[[], int | None]) -> asyncio.Future[int | None]:
        future = self._loop.run_in_executor(self._thread, work)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: asyncio.Future[int | None]) -> None:
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            _log.error("garbage not collected", error=str(error), exc_info=error)
        elif (moment := future.result()) is not None:
            self.wake_at(moment)

    # From here on in the thread.

    def _first(self) -> int | None:
        assert self._content is not None
        if stray := self._content.cleanup():
            _log.info("removed files that no metadata names", count=stray)
        return self._collect()

    def _collect(self) -> int | None:
        """Mark and sweep until nothing is left; the moment of the next expiry."""
        begun = time.monotonic()
        total = Dead.none()
        for attempt in range(1_000_000):
            dead, moment, whole = self._round(locked=attempt >= ATTEMPTS)
            total.add(dead)
            if whole:
                break
        self._give_back(total)
        if any(total):
            self.last = Report(len(total.content), len(total.snapshots), len(total.ingests), time.monotonic() - begun)
            _log.info("garbage collected", **self.last._asdict())
        return moment

    def _round(self, locked: bool) -> tuple[Dead, int | None, bool]:
        """One mark and as much sweep as holds; what went, the next expiry, and whether that was all."""
        database = self._database
        assert self._content is not None
        with database.lock if locked else contextlib.nullcontext():
            with database.lock:
                generation = database.generation
                held = self._content.writing()
                moment_of = contextlib.ExitStack()
                connection = moment_of.enter_context(database.snapshot())
            with moment_of:
                dead, moment = mark(connection, time.time_ns(), held)
            gone = Dead.none()
            for batch in _batches(dead):
                with database.transaction() as tx:
                    if database.generation != generation:
                        return gone, moment, False
                    self._sweep(tx, batch)
                    generation += 1
                gone.add(batch)
            return gone, moment, True

    def _sweep(self, tx: Transaction, batch: Dead) -> None:
        """Delete the rows, and have their events published."""

        def tell(namespace: str, topic: str, event: Message) -> None:
            tx.after(functools.partial(self._exchange.publish, namespace, topic, event))

        tx.execute("PRAGMA defer_foreign_keys = ON")
        for namespace, digest in batch.content:
            tx.execute("DELETE FROM content WHERE namespace = ? AND digest = ?", (namespace, digest))
            tell(namespace, "/content/delete", event_types_pb2.ContentDelete(digest=digest))
        for id, snapshotter, namespace, key in batch.snapshots:
            tx.execute("DELETE FROM snapshots WHERE id = ?", (id,))
            tell(namespace, "/snapshot/remove", event_types_pb2.SnapshotRemove(key=key, snapshotter=snapshotter))
        for namespace, name in batch.images:
            tx.execute("DELETE FROM images WHERE namespace = ? AND name = ?", (namespace, name))
            tell(namespace, "/images/delete", images_pb2.ImageDelete(name=name))
        for row in batch.ingests:
            tx.execute("DELETE FROM ingests WHERE namespace = ? AND ref = ?", row)
        for row in batch.mounts:
            tx.execute("UPDATE mounts SET state = 2 WHERE namespace = ? AND name = ? AND state = 1", row)
        for row in batch.leases:
            tx.execute("DELETE FROM leases WHERE namespace = ? AND id = ?", row)

    def _give_back(self, gone: Dead) -> None:
        """Remove the files of deleted rows; each room's failure is told and does not stop the others."""
        assert self._content is not None
        content = self._content
        work: list[Callable[[], object]] = [lambda: content.remove_files([digest for _, digest in gone.content])]
        if self._mounts is not None:
            work.insert(0, self._mounts.cleanup)  # also what was busy the last time
        if gone.ingests:
            work.append(content.sweep_ingests)
        names = {snapshotter for _, snapshotter, _, _ in gone.snapshots}
        work.extend(self._snapshotters[name].cleanup for name in names if name in self._snapshotters)
        for step in work:
            try:
                step()
            except Exception as error:
                _log.error("files of garbage not removed", error=str(error), exc_info=error)


def _batches(dead: Dead) -> Iterable[Dead]:
    """``dead`` in pieces of at most ``BATCH`` rows, in its order: no snapshot before its children."""
    for table, rows in enumerate(dead):
        for start in range(0, len(rows), BATCH):
            batch = Dead.none()
            batch[table].extend(rows[start : start + BATCH])
            yield batch
