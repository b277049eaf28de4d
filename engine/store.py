"""engine.db: what must outlive the daemon, as JSON documents in SQLite.

Rule: a change is on disk before anybody is told of it. WAL with ``synchronous=NORMAL`` survives the death of the
process at any instant; a power cut may lose the last commits but never mixes them up (sqlite.org/wal.html).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from oci.errors import ResourceExhausted
from oci.reserve import Reserve

SCHEMA_VERSION = 1
FREE_SPACE = "no space left on device: free some, or move the data root"


class Store:
    """Documents by (kind, id). Kinds in use: ``container``, ``network``, ``endpoint``, ``exec``, ``volume``."""

    def __init__(self, path: str) -> None:
        """Open or create the database at ``path`` (``:memory:`` in unit tests)."""
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS document"
            " (kind TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID"
        )
        self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        self._changes: dict[str, int] = {}
        self._reserve = None if path == ":memory:" else Reserve(f"{path}.reserve")

    def _write(self, sql: str, parameters: tuple[object, ...]) -> None:
        if self._reserve is not None:
            self._reserve.guard()
        try:
            self._db.execute(sql, parameters)
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise ResourceExhausted(f"cannot write to the engine's database: {error}", hint=FREE_SPACE) from error
            raise

    def put(self, kind: str, key: str, body: bytes) -> None:
        """Write one document. Idempotent."""
        self._changes[kind] = self.changes(kind) + 1
        self._write("INSERT OR REPLACE INTO document VALUES (?, ?, ?)", (kind, key, body))

    def put_all(self, kind: str, documents: Sequence[tuple[str, bytes]]) -> None:
        """Write several documents of a kind, all or none. Idempotent."""
        if len(documents) > 1:
            self._write("BEGIN", ())
        try:
            for key, body in documents:
                self.put(kind, key, body)
            if len(documents) > 1:
                self._write("COMMIT", ())
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def get(self, kind: str, key: str) -> bytes | None:
        """One document, or None."""
        row = self._db.execute("SELECT body FROM document WHERE kind=? AND id=?", (kind, key)).fetchone()
        return None if row is None else bytes(row[0])

    def delete(self, kind: str, key: str) -> None:
        """Remove one document. Idempotent."""
        self._changes[kind] = self.changes(kind) + 1
        self._write("DELETE FROM document WHERE kind=? AND id=?", (kind, key))

    def changes(self, kind: str) -> int:
        """How often documents of ``kind`` were written: while that is the same, so are they."""
        return self._changes.get(kind, 0)

    def all(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """Every (id, document) of ``kind``, ordered by id."""
        for key, body in self._db.execute("SELECT id, body FROM document WHERE kind=? ORDER BY id", (kind,)).fetchall():
            yield str(key), bytes(body)

    def close(self) -> None:
        self._db.close()
