"""``meta.db``: the one database of containerd-py, and the rules by which stores write to it.

Rule: every change is made in ``with database.transaction() as tx:``, which holds the database's only lock. Inside there
is no ``await``, no ``fsync``, no copying and no waiting for anybody: some ten microseconds, a ``mkdir`` or a ``rename``
at most. An exception rolls back. A transaction begun inside another one of the same thread is part of that one.

A store that creates an object (a blob, an ingest, a snapshot) does in its transaction:

1. insert the row (``schema.py`` has the tables; labels are JSON, see ``pack_labels``);
2. ``tx.claim(scope, type, id)``: makes the namespace known and, when ``scope.lease`` is set, puts the object under
   that lease (types: ``content``, ``ingests``, ``snapshots/<snapshotter>``). ``NotFound`` when there is no such lease.
   The same where a create answers ``AlreadyExists`` and the client counts on the object from then on: then in a
   transaction that ends without an error, before the answer is raised;
3. ``tx.after(callback)`` for what follows the commit: publishing its event, ``collector.schedule()``. Callbacks run in
   order of the commits, still under the lock, so they must be quick.

That is all garbage collection needs: it reads labels, parents and leases from the tables. It deletes rows of
``content``, ``ingests`` and ``snapshots`` itself, in one transaction, children first; then it publishes their events
and has the owner give back the bytes (``Snapshotter.cleanup``: directories whose ``id`` has no row). So no store may
keep a copy of its rows in memory, and bytes without a row count as rubbish at any moment no transaction is open: make
a snapshot's directory inside the transaction that inserts its row.

How lasting: after the ``with`` block a change survives the death of this process. It survives a power cut when
``flush`` (any thread) or ``await flushed()`` (event loop), called after it, returned: one ``fdatasync`` for all that
wait at the same time. gRPC services do that before they answer a client who was promised durability; so does whoever
deletes files because of a deleted row.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import msgspec

from containerd_py.interfaces import Scope
from containerd_py.metadata.schema import MIGRATIONS
from oci import errors
from oci.reserve import Reserve

Parameters = Sequence[str | int | bytes | None]
Row = tuple[Any, ...]

CHECKPOINT_COMMITS = 512
"""Commits after which a flush also moves the log's pages into the database, off the event loop."""
SOON_SECONDS = 1.0
LOG_PAGES = 8192
"""Pages after which SQLite does so by itself, in the midst of a commit: only if nobody ever flushes."""

_decode_labels = msgspec.json.Decoder(dict[str, str]).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


def pack_labels(labels: Mapping[str, str]) -> str:
    """Labels as a table holds them. Empty values are dropped: in containerd's updates they mean removal."""
    if not labels:
        return "{}"
    return _encode({key: value for key, value in labels.items() if value}).decode()


def unpack_labels(text: str) -> dict[str, str]:
    """The reverse of ``pack_labels``."""
    return {} if text == "{}" else _decode_labels(text)


class Transaction:
    """What the ``with`` block works with. One object per database: valid only inside the block."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection = database.connection
        self._depth = 0
        self._after: list[Callable[[], object]] = []

    def execute(self, sql: str, parameters: Parameters = ()) -> sqlite3.Cursor:
        """Run one statement; ``rowcount`` and ``lastrowid`` are the cursor's."""
        return self._connection.execute(sql, parameters)

    def rows(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """All rows of a query, the block's own changes included."""
        return self._connection.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """The first row of a query, if any."""
        found: Row | None = self._connection.execute(sql, parameters).fetchone()
        return found

    def after(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when, and only if, the outermost block is committed."""
        self._after.append(callback)

    def claim(self, scope: Scope, type: str, id: str) -> None:
        """Make the namespace known and put the object under the caller's lease. Raises ``NotFound`` (lease)."""
        self.know(scope.namespace)
        if not scope.lease:
            return
        if self.row("SELECT 1 FROM leases WHERE namespace = ? AND id = ?", scope) is None:
            raise errors.NotFound(f"lease {scope.lease!r}: not found")
        self.execute("INSERT OR IGNORE INTO lease_resources VALUES (?, ?, ?, ?)", (*scope, type, id))

    def know(self, namespace: str) -> None:
        """A namespace exists from the first object in it on."""
        known = self._database.known_namespaces
        if namespace not in known:
            self.execute("INSERT OR IGNORE INTO namespaces (name) VALUES (?)", (namespace,))
            self.after(lambda: known.add(namespace))

    def __enter__(self) -> Self:
        self._database.lock.acquire()
        if self._depth == 0:
            self._database.reserve.guard()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except BaseException:
                self._database.lock.release()
                raise
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._depth -= 1
            if self._depth == 0:
                self._end(error)
        finally:
            self._database.lock.release()
        if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
            raise self._database.explain(error) from error

    def _end(self, error: BaseException | None) -> None:
        callbacks, self._after = self._after, []
        if error is None:
            try:
                self._connection.execute("COMMIT")
            except sqlite3.Error as failure:
                self._roll_back()
                raise self._database.explain(failure) from failure
            self._database.committed()
            for callback in callbacks:
                callback()
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        # SQLite has rolled back by itself after some errors (a full disk among them).
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


class Database:
    """``<root>/meta.db``. Thread-safe. Raises ``FailedPrecondition`` when the file cannot be used."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.reserve = Reserve(f"{path}.reserve")
        self.lock = threading.RLock()
        self.known_namespaces: set[str] = set()
        self.generation = 0
        """Number of commits so far: equal numbers mean that nothing changed in between."""
        self._flushed = 0
        self._checkpointed = 0
        self._flush_lock = threading.Lock()
        self._flushing: asyncio.Future[None] | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._flusher = ThreadPoolExecutor(1, "meta-flush")
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self.connection = self._connect()
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise errors.FailedPrecondition(
                f"metadata database {path} cannot be used: {error}",
                hint="restore it from a copy, or move it away to start empty",
            ) from error
        self._transaction = Transaction(self)
        # The log is made by the first write, at the latest this one; it lives as long as the connection.
        self.connection.execute("BEGIN IMMEDIATE").execute("UPDATE namespaces SET name = name WHERE 0")
        self.connection.execute("COMMIT")
        self._log = os.open(f"{path}-wal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _sync_directory(os.path.dirname(path))
        self.known_namespaces.update(name for (name,) in self.rows("SELECT name FROM namespaces"))

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=256)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_PAGES * 4096}")
        return connection

    def _migrate(self) -> None:
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise sqlite3.DatabaseError(f"it was written by a newer version (schema {version})")
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            self.connection.executescript(f"BEGIN;{script};PRAGMA user_version = {number};COMMIT;")

    def transaction(self) -> Transaction:
        """A block of changes that happen together or not at all; see the module's text."""
        return self._transaction

    def rows(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """All rows of a query, outside of a transaction or inside one of this thread."""
        with self.lock:
            return self.connection.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """The first row of a query, if any."""
        with self.lock:
            found: Row | None = self.connection.execute(sql, parameters).fetchone()
        return found

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """One moment of the whole database for long reading: it keeps nobody from writing. Open it in a thread."""
        connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, isolation_level=None)
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()

    def committed(self) -> None:
        """A transaction was written to the log."""
        self.generation += 1

    def flush(self) -> None:
        """Have all that was committed until now survive a power cut. Blocking; raises ``OSError``."""
        wanted = self.generation
        with self._flush_lock:
            if self._flushed >= wanted:
                return
            reached = self.generation
            os.fdatasync(self._log)
            self._flushed = reached
            if reached - self._checkpointed >= CHECKPOINT_COMMITS:
                self._checkpoint()
                self._checkpointed = reached

    async def flushed(self) -> None:
        """``flush`` without blocking the loop; callers that wait at the same time share one."""
        wanted = self.generation
        while self._flushed < wanted:
            # A flush that is done but whose callback has still to run cannot be waited for: that would not yield.
            await asyncio.shield(self._flush_now())

    def flush_soon(self) -> None:
        """``flushed`` within a second, for changes that nobody waits for."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(SOON_SECONDS, self._flush_now)

    def _flush_now(self) -> asyncio.Future[None]:
        """The flush that is under way, else a new one."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().run_in_executor(self._flusher, self.flush)
            self._flushing.add_done_callback(self._flush_ended)
        return self._flushing

    def _flush_ended(self, ended: asyncio.Future[None]) -> None:
        if self._flushing is ended:
            self._flushing = None
        if not ended.cancelled():
            ended.exception()  # waiters have it; without one it is of no interest

    def _checkpoint(self) -> None:
        # A connection of its own, so that the lock is not held while the database file is synced.
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def explain(self, error: sqlite3.Error) -> errors.GantryError:
        """What SQLite refused, as an error of ours."""
        if "full" in str(error):
            return errors.ResourceExhausted(f"metadata database {self.path}: {error}", hint="free some disk space")
        return errors.Internal(f"metadata database {self.path}: {error}")

    def close(self) -> None:
        """Flush and close. Nothing may be called afterwards."""
        if self._soon is not None:
            self._soon.cancel()
        self.flush()
        self._flusher.shutdown()
        with self.lock:
            self.connection.close()
        os.close(self._log)


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
