"""The content store: which namespace has which blob, and what is arriving.

Rule: a row without a whole file never exists. A blob's file gets its name, synced, before its row is committed, and
loses it after its last row is gone; both under ``_files_lock``, which only threads take (never the event loop).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence

from containerd_py import filters as filter_language
from containerd_py.content.files import Files, OpenBlob, remove_ingest
from containerd_py.content.writer import Expectation, Writer
from containerd_py.interfaces import Collector, ContentInfo, Exchange, IngestStatus, Scope
from containerd_py.metadata.database import Database, Row, Transaction, pack_labels, unpack_labels
from containerd_py.metadata.labels import check_labels, masked
from oci import digest as digests
from oci import errors
from protos.containerd import event_types_pb2

INGEST_LIFE = 24 * 3600 * 1_000_000_000
"""Nanoseconds an ingest without a lease is kept after its last writer began, as in containerd."""

_COLUMNS = "digest, size, created_at, updated_at, labels"


class Content:
    """``ContentStore`` over ``database`` and the directory ``root``."""

    def __init__(self, database: Database, root: str, exchange: Exchange, collector: Collector) -> None:
        self._database = database
        self._files = Files(root)
        self._exchange = exchange
        self._collector = collector
        self._files_lock = threading.Lock()
        self._writers: dict[tuple[str, str], Writer] = {}
        """Ingests that have a writer; guarded by the database's lock."""
        self._deleted: set[str] = set()
        """Digests whose files ``remove_files`` shall look at; guarded by the database's lock."""

    def info(self, scope: Scope, digest: str) -> ContentInfo:
        row = self._database.row(
            f"SELECT {_COLUMNS} FROM content WHERE namespace = ? AND digest = ?",  # noqa: S608 - a constant
            (scope.namespace, digest),
        )
        if row is None:
            digests.parse(digest)
            raise errors.NotFound(f"content {digest}: not found")
        return _info(row)

    def walk(self, scope: Scope, filters: Sequence[str] = ()) -> list[ContentInfo]:
        matches = filter_language.compile_filters(tuple(filters))
        rows = self._database.rows(
            f"SELECT {_COLUMNS} FROM content WHERE namespace = ? ORDER BY digest",  # noqa: S608 - a constant
            (scope.namespace,),
        )
        found = map(_info, rows)
        return [info for info in found if matches(_lookup(info))] if filters else list(found)

    def update(self, scope: Scope, digest: str, labels: Mapping[str, str], fields: Sequence[str] = ()) -> ContentInfo:
        with self._database.transaction() as tx:
            old = self.info(scope, digest)
            found = masked(old.labels, labels, fields, f"content {digest}")
            now = time.time_ns()
            tx.execute(
                "UPDATE content SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
                (pack_labels(found), now, scope.namespace, digest),
            )
        return ContentInfo(digest, old.size, old.created_at, now, found)

    def delete(self, scope: Scope, digest: str) -> None:
        """Raises ``NotFound``. The collector takes the file away."""
        with self._database.transaction() as tx:
            self.info(scope, digest)
            tx.execute("DELETE FROM content WHERE namespace = ? AND digest = ?", (scope.namespace, digest))
            tx.execute(
                "DELETE FROM lease_resources WHERE namespace = ? AND type = 'content' AND id = ?",
                (scope.namespace, digest),
            )
            event = event_types_pb2.ContentDelete(digest=digest)
            tx.after(lambda: self._deleted.add(digest))
            tx.after(lambda: self._exchange.publish(scope.namespace, "/content/delete", event))
            tx.after(self._collector.schedule)

    def open(self, scope: Scope, digest: str) -> OpenBlob:
        self.info(scope, digest)
        try:
            return OpenBlob(self._files.blob(digest))
        except FileNotFoundError:
            raise errors.NotFound(f"content {digest}: its file is missing", hint="fetch it again") from None

    def read(self, scope: Scope, digest: str) -> bytes:
        with self.open(scope, digest) as blob:
            return blob.read(blob.size, 0)

    def writer(self, scope: Scope, ref: str, total: int = 0, expected: str = "") -> Writer:
        if not ref:
            raise errors.InvalidArgument("ref of an ingest must not be empty")
        if expected:
            digests.parse(expected)
        writer, elsewhere = self._begin(scope, ref, total, expected)
        try:
            if not (elsewhere and writer.share(self._files)):
                writer.open()
        except BaseException:
            writer.close()
            raise
        return writer

    def _begin(self, scope: Scope, ref: str, total: int, expected: str) -> tuple[Writer, bool]:
        """Lock the ingest and note it; whether another namespace has the expected blob."""
        key = (scope.namespace, ref)
        now = time.time_ns()
        expires = 0 if scope.lease else now + INGEST_LIFE
        present = False
        with self._database.transaction() as tx:
            if key in self._writers:
                raise errors.Unavailable(f"ingest {ref!r}: is being written by somebody else")
            if expected and self._has(tx, scope, expected):
                tx.claim(scope, "content", expected)
                present = True
            else:
                tx.claim(scope, "ingests", ref)
                tx.execute(
                    "INSERT INTO ingests VALUES (?, ?, ?, ?, '{}', ?, ?) ON CONFLICT DO UPDATE SET"
                    " expires = excluded.expires, total = max(total, excluded.total),"
                    " expected = CASE excluded.expected WHEN '' THEN expected ELSE excluded.expected END",
                    (*key, expected, total, now, expires),
                )
                row = tx.row("SELECT total, expected, started_at FROM ingests WHERE namespace = ? AND ref = ?", key)
                assert row is not None
                writer = Writer(
                    scope, ref, self._files.ingest(*key), Expectation(*row), self._publish, lambda: self._release(key)
                )
                elsewhere = bool(expected) and tx.row("SELECT 1 FROM content WHERE digest = ?", (expected,)) is not None
                self._writers[key] = writer
                tx.after(lambda: self._collector.wake_at(expires) if expires else None)
        if present:
            raise errors.AlreadyExists(f"content {expected}: already exists")
        return writer, elsewhere

    @staticmethod
    def _has(tx: Transaction, scope: Scope, digest: str) -> bool:
        found = tx.row("SELECT 1 FROM content WHERE namespace = ? AND digest = ?", (scope.namespace, digest))
        return found is not None

    def _release(self, key: tuple[str, str]) -> None:
        with self._database.lock:
            self._writers.pop(key, None)

    def _publish(self, writer: Writer, digest: str, labels: Mapping[str, str]) -> None:
        """``writer``'s bytes become a blob of its namespace. Blocking."""
        check_labels(labels)
        with self._files_lock:
            size = self._files.size(digest)
            if size is None:
                self._files.publish(writer.directory, digest)
            new = self._enter(writer, digest, labels)
        remove_ingest(writer.directory)
        self._database.flush()
        if not new:
            raise errors.AlreadyExists(f"content {digest}: already exists")

    def _enter(self, writer: Writer, digest: str, labels: Mapping[str, str]) -> bool:
        """The blob's row instead of the ingest's. False when the namespace had the blob."""
        scope, now = writer.scope, time.time_ns()
        with self._database.transaction() as tx:
            tx.claim(scope, "content", digest)
            made = tx.execute(
                "INSERT OR IGNORE INTO content VALUES (?, ?, ?, ?, ?, ?)",
                (scope.namespace, digest, writer.offset, pack_labels(labels), now, now),
            )
            self._forget(tx, scope, writer.ref)
            if made.rowcount:
                event = event_types_pb2.ContentCreate(digest=digest, size=writer.offset)
                tx.after(lambda: self._exchange.publish(scope.namespace, "/content/create", event))
        return bool(made.rowcount)

    @staticmethod
    def _forget(tx: Transaction, scope: Scope, ref: str) -> bool:
        key = (scope.namespace, ref)
        tx.execute("DELETE FROM lease_resources WHERE namespace = ? AND type = 'ingests' AND id = ?", key)
        return tx.execute("DELETE FROM ingests WHERE namespace = ? AND ref = ?", key).rowcount > 0

    def status(self, scope: Scope, ref: str) -> IngestStatus:
        row = self._database.row(
            "SELECT ref, total, expected, started_at FROM ingests WHERE namespace = ? AND ref = ?",
            (scope.namespace, ref),
        )
        if row is None:
            raise errors.NotFound(f"ingest {ref!r}: not found")
        return self._status(scope.namespace, row)

    def statuses(self, scope: Scope, filters: Sequence[str] = ()) -> list[IngestStatus]:
        matches = filter_language.compile_filters(tuple(filters))
        rows = self._database.rows(
            "SELECT ref, total, expected, started_at FROM ingests WHERE namespace = ? ORDER BY ref", (scope.namespace,)
        )
        found = [self._status(scope.namespace, row) for row in rows]
        return [one for one in found if matches(filter_language.lookup_in({"ref": one.ref}, {}))]

    def _status(self, namespace: str, row: Row) -> IngestStatus:
        ref, total, expected, started_at = row
        try:
            stat = os.stat(f"{self._files.ingest(namespace, ref)}/data")
        except FileNotFoundError:
            return IngestStatus(ref, 0, total, expected, started_at, started_at)
        return IngestStatus(ref, stat.st_size, total, expected, started_at, max(started_at, stat.st_mtime_ns))

    def abort(self, scope: Scope, ref: str) -> None:
        """Raises ``NotFound``, and ``Unavailable`` while a writer holds it."""
        key = (scope.namespace, ref)
        with self._database.transaction() as tx:
            if key in self._writers:
                raise errors.Unavailable(f"ingest {ref!r}: is being written")
            if not self._forget(tx, scope, ref):
                raise errors.NotFound(f"ingest {ref!r}: not found")
            # In the transaction: a new writer of the same ref must not find, nor lose, these bytes.
            remove_ingest(self._files.ingest(*key))

    def writing(self) -> set[tuple[str, str]]:
        """(namespace, ref) of the ingests that have a writer: garbage collection leaves them alone."""
        with self._database.lock:
            return set(self._writers)

    def remove_files(self, gone: Sequence[str]) -> None:
        """Remove the files of blobs deleted so far and of the digests ``gone``, where no row is left. Blocking."""
        with self._database.lock:
            pending, self._deleted = self._deleted | set(gone), set()
        if pending:
            self._database.flush()
        for digest in pending:
            with self._files_lock:
                if self._database.row("SELECT 1 FROM content WHERE digest = ?", (digest,)) is None:
                    self._files.remove_blob(digest)

    def sweep_ingests(self) -> int:
        """Remove the directories of ingests that have no row. Blocking for a moment."""
        with self._database.transaction() as tx:
            rows = tx.rows("SELECT namespace, ref FROM ingests")
            return self._files.sweep_ingests(self._files.ingest(*row) for row in rows)

    def cleanup(self) -> int:
        """Remove every file without a row, which a crash may have left; how many. Blocking."""
        known = {digest for (digest,) in self._database.rows("SELECT DISTINCT digest FROM content")}
        stray = [digest for digest in self._files.blobs() if digest not in known]
        self.remove_files(stray)
        return len(stray) + self.sweep_ingests()


def _info(row: Row) -> ContentInfo:
    digest, size, created_at, updated_at, labels = row
    return ContentInfo(digest, size, created_at, updated_at, unpack_labels(labels))


def _lookup(info: ContentInfo) -> filter_language.Lookup:
    return filter_language.lookup_in({"digest": info.digest, "size": str(info.size)}, info.labels)
