"""What all snapshotters share: rows in ``meta.db``, one numbered directory for each, events, and the sweep.

Rule: a directory is made inside the transaction that inserts its row, and taken away (renamed to ``gone-…``) after the
one that deletes it; whatever has no row is rubbish, found by ``cleanup`` at start and whenever asked. Nothing is synced
for a snapshot that a crash may forget; ``commit`` has the bytes on disk before its row says so, or notes that it has
not: then ``settle`` does, once for many, and what a power cut left without it is forgotten at start.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog
from google.protobuf.message import Message

from containerd_py import filters as filter_language
from containerd_py.diff import mounting
from containerd_py.interfaces import Mount, Scope, SnapshotInfo, Usage
from containerd_py.metadata.database import Database, Row, Transaction, pack_labels, unpack_labels
from containerd_py.snapshots.placement import spread
from containerd_py.snapshots.usage import disk_usage
from oci.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from protos.containerd import event_types_pb2, snapshots_pb2

VIEW, ACTIVE, COMMITTED = snapshots_pb2.VIEW, snapshots_pb2.ACTIVE, snapshots_pb2.COMMITTED
_KINDS: dict[int, str] = {VIEW: "view", ACTIVE: "active", COMMITTED: "committed"}
_GONE = "gone-"
MAKING = "new-"
"""Prefix of directories that become a snapshot's in a moment; rubbish only at start."""

_INFO = """
    SELECT s.key, COALESCE(p.key, ''), s.kind, s.created_at, s.updated_at, s.labels
    FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent WHERE s.snapshotter = ? AND s.namespace = ?
"""
_CHAIN = """
    WITH RECURSIVE chain (id, parent, depth) AS (
        SELECT id, parent, 0 FROM snapshots WHERE id = ?
        UNION ALL SELECT s.id, s.parent, depth + 1 FROM snapshots s JOIN chain ON s.id = chain.parent)
    SELECT id FROM chain ORDER BY depth
"""
Publish = Callable[[str, str, Message], None]
log = structlog.get_logger("containerd_py.snapshots")


class DirectorySnapshotter:
    """The rows and directories of one snapshotter; subclasses say what is in a directory and how it is mounted.

    Thread-safe. ``root`` is the snapshotter's own directory (``<root>/snapshots/N``).
    """

    name = ""
    copies = False
    rebases = False
    """Whether ``commit`` can put a snapshot that was prepared on nothing upon a parent."""

    def __init__(self, root: str, database: Database, publish: Publish) -> None:
        """Makes the directories and sweeps what a crash left; removed bytes go in the background."""
        self.root = root
        self.directory = os.path.join(root, "snapshots")
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        spread(self.directory)
        self._database = database
        self._publish = publish
        self._deleting = threading.Lock()
        self._resource = f"snapshots/{self.name}"
        self._recover()

    # What subclasses say

    def _make(self, path: str, source: str, parents: Sequence[int], kind: int) -> None:
        """Make the directory of a snapshot at ``path``; inside a transaction: quick. ``source``: see ``_stage``."""
        raise NotImplementedError

    def _mounts(self, id: int, parents: Sequence[int], kind: int) -> list[Mount]:
        raise NotImplementedError

    def data(self, id: int) -> str:
        """The directory that holds the files of snapshot ``id`` itself."""
        raise NotImplementedError

    def _stage(self, parents: Sequence[int], kind: int) -> str:
        """Slow preparation outside of the transaction: a directory to be renamed, or ""."""
        return ""

    # The interface

    def stat(self, scope: Scope, key: str) -> SnapshotInfo:
        """Raises ``NotFound``."""
        row = self._database.row(_INFO + " AND s.key = ?", (self.name, scope.namespace, key))
        if row is None:
            raise self._missing(key)
        return _info(row)

    def prepare(self, scope: Scope, key: str, parent: str = "", labels: Mapping[str, str] = {}) -> list[Mount]:
        """A writable snapshot; see ``interfaces.Snapshotter``."""
        return self._create(scope, key, parent, labels, ACTIVE)

    def view(self, scope: Scope, key: str, parent: str = "", labels: Mapping[str, str] = {}) -> list[Mount]:
        """A read-only snapshot."""
        return self._create(scope, key, parent, labels, VIEW)

    def mounts(self, scope: Scope, key: str) -> list[Mount]:
        """Raises ``NotFound``, ``FailedPrecondition`` (committed)."""
        id, kind = self._get(scope, key)
        if kind == COMMITTED:
            raise FailedPrecondition(f"snapshot {key!r} is committed: it has no mounts", hint="use a view of it")
        return self._mounts(id, self.chain(id)[1:], kind)

    def commit(
        self,
        scope: Scope,
        name: str,
        key: str,
        labels: Mapping[str, str] = {},
        *,
        parent: str = "",
        sync: bool = True,
        usage: Usage | None = None,
    ) -> None:
        """Freeze ``key`` under ``name``. Blocking: counts the files and, with ``sync``, writes them to disk.

        ``parent`` puts a snapshot that has none upon that committed one (where ``rebases``). Without ``sync`` the
        caller has to ``settle`` before it says that the snapshot is there. ``usage``: the files were counted already.
        """
        if not name:
            raise InvalidArgument(f"snapshot {key!r} cannot be committed: it was given no name")
        id, kind = self._get(scope, key)
        self._committable(key, kind)
        size, inodes = usage or disk_usage(self.data(id))
        if sync:
            mounting.sync_file_system(self.directory)
        now = time.time_ns()
        with self._database.transaction() as tx:
            again, kind = self._get(scope, key)
            self._committable(key, kind if again == id else COMMITTED)
            self._vacant(scope, name)
            if parent:
                self._rebase(scope, id, key, parent, tx)
            tx.execute(
                "UPDATE snapshots SET key = ?, kind = ?, labels = ?, size = ?, inodes = ?, created_at = ?,"
                " updated_at = ? WHERE id = ?",
                (name, COMMITTED, pack_labels(labels), size, inodes, now, now, id),
            )
            if not sync:
                tx.execute("INSERT INTO snapshots_unsynced VALUES (?, ?)", (id, boot_id()))
            self._unlease(tx, scope, key)
            tx.claim(scope, self._resource, name)
            event = event_types_pb2.SnapshotCommit(key=key, name=name, snapshotter=self.name)
            tx.after(lambda: self._publish(scope.namespace, "/snapshot/commit", event))

    def settle(self, scope: Scope, keys: Sequence[str]) -> None:
        """Have the bytes of committed ``keys`` on disk, whoever committed them. Blocking."""
        marks = ", ".join("?" * len(keys))
        unsynced = self._database.rows(
            "SELECT u.id FROM snapshots_unsynced u JOIN snapshots s USING (id)"  # noqa: S608 - question marks
            f" WHERE s.snapshotter = ? AND s.namespace = ? AND s.key IN ({marks})",
            (self.name, scope.namespace, *keys),
        )
        if unsynced:
            mounting.sync_file_system(self.directory)
            self._settled(row[0] for row in unsynced)

    def _settled(self, ids: Iterable[int]) -> None:
        with self._database.transaction() as tx:
            for id in ids:
                tx.execute("DELETE FROM snapshots_unsynced WHERE id = ?", (id,))

    def remove(self, scope: Scope, key: str) -> None:
        """Forget ``key``; its bytes go in the background."""
        with self._database.transaction() as tx:
            id, _ = self._get(scope, key)
            if tx.row("SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1", (id,)) is not None:
                raise FailedPrecondition(f"cannot remove snapshot {key!r}: it has children", hint="remove them first")
            tx.execute("DELETE FROM snapshots WHERE id = ?", (id,))
            self._unlease(tx, scope, key)
            event = event_types_pb2.SnapshotRemove(key=key, snapshotter=self.name)
            tx.after(lambda: self._publish(scope.namespace, "/snapshot/remove", event))
        self._take_away([id])
        self._delete_soon()

    def usage(self, scope: Scope, key: str) -> Usage:
        """Bytes and inodes of the snapshot without its parents. Blocking unless committed."""
        row = self._database.row(
            "SELECT id, kind, size, inodes FROM snapshots WHERE snapshotter = ? AND namespace = ? AND key = ?",
            (self.name, scope.namespace, key),
        )
        if row is None:
            raise self._missing(key)
        id, kind, size, inodes = row
        return Usage(size, inodes) if kind == COMMITTED else Usage(*disk_usage(self.data(id)))

    def update(self, scope: Scope, key: str, labels: Mapping[str, str], fields: Sequence[str] = ()) -> SnapshotInfo:
        """Set all labels, or those of ``fields``. Raises ``NotFound``, ``InvalidArgument`` (another field)."""
        with self._database.transaction() as tx:
            merged = _merged(self.stat(scope, key).labels, labels, fields)
            tx.execute(
                "UPDATE snapshots SET labels = ?, updated_at = ? WHERE snapshotter = ? AND namespace = ? AND key = ?",
                (pack_labels(merged), time.time_ns(), self.name, scope.namespace, key),
            )
            return self.stat(scope, key)

    def walk(self, scope: Scope, filters: Sequence[str] = ()) -> list[SnapshotInfo]:
        """Snapshots that match one of ``filters`` (all when empty), by key."""
        matches = filter_language.compile_filters(tuple(filters)) if filters else None
        rows = self._database.rows(_INFO + " ORDER BY s.key", (self.name, scope.namespace))
        infos = [_info(row) for row in rows]
        if matches is None:
            return infos
        return [info for info in infos if matches(functools.partial(_field, info))]

    def cleanup(self) -> None:
        """Give back the bytes of everything without a row, now. Blocking."""
        with self._database.transaction():
            known = self._ids()
            orphans = [int(name) for name in os.listdir(self.directory) if name.isdigit() and int(name) not in known]
            self._take_away(orphans)
        self._delete()

    def hold(self, scope: Scope, key: str) -> bool:
        """Put committed ``key`` under the caller's lease; False when there is no such snapshot."""
        with self._database.transaction() as tx:
            row = self._find(scope, key)
            if row is None or row[1] != COMMITTED:
                return False
            tx.claim(scope, self._resource, key)
        return True

    def chain(self, id: int) -> list[int]:
        """``id`` and its ancestors, nearest first."""
        return [row[0] for row in self._database.rows(_CHAIN, (id,))]

    def id_of(self, scope: Scope, key: str) -> int:
        """The number of a snapshot's directory. Raises ``NotFound``."""
        return int(self._get(scope, key)[0])

    # Rows

    def _missing(self, key: str) -> NotFound:
        return NotFound(f"snapshot {key!r} of {self.name}: not found")

    def _find(self, scope: Scope, key: str) -> Row | None:
        return self._database.row(
            "SELECT id, kind FROM snapshots WHERE snapshotter = ? AND namespace = ? AND key = ?",
            (self.name, scope.namespace, key),
        )

    def _get(self, scope: Scope, key: str) -> Row:
        row = self._find(scope, key)
        if row is None:
            raise self._missing(key)
        return row

    def _vacant(self, scope: Scope, key: str) -> None:
        if self._find(scope, key) is not None:
            raise AlreadyExists(f"snapshot {key!r} of {self.name}: already exists")

    @staticmethod
    def _committable(key: str, kind: int) -> None:
        if kind != ACTIVE:
            raise FailedPrecondition(f"snapshot {key!r} is not active: it cannot be committed")

    def _parent(self, scope: Scope, parent: str) -> int | None:
        if not parent:
            return None
        id, kind = self._get(scope, parent)
        if kind != COMMITTED:
            raise InvalidArgument(f"snapshot {parent!r} is not committed: it cannot be a parent")
        return int(id)

    def _rebase(self, scope: Scope, id: int, key: str, parent: str, tx: Transaction) -> None:
        below = self._parent(scope, parent)
        current = tx.row("SELECT parent FROM snapshots WHERE id = ?", (id,))
        if current is not None and current[0] == below:
            return
        if not self.rebases or current != (None,):
            raise FailedPrecondition(f"snapshot {key!r} cannot be put upon {parent!r}: it was prepared otherwise")
        tx.execute("UPDATE snapshots SET parent = ? WHERE id = ?", (below, id))

    def _unlease(self, tx: Transaction, scope: Scope, key: str) -> None:
        tx.execute(
            "DELETE FROM lease_resources WHERE namespace = ? AND type = ? AND id = ?",
            (scope.namespace, self._resource, key),
        )

    def _create(self, scope: Scope, key: str, parent: str, labels: Mapping[str, str], kind: int) -> list[Mount]:
        if not key:
            raise InvalidArgument("a snapshot needs a key")
        source = ""
        if self.copies:
            self._vacant(scope, key)
            below = self._parent(scope, parent)
            source = self._stage(self.chain(below) if below else [], kind)
        try:
            return self._insert(scope, key, parent, labels, kind, source)
        finally:
            if source:
                shutil.rmtree(source, ignore_errors=True)  # gone already, unless the insert failed

    def _insert(
        self, scope: Scope, key: str, parent: str, labels: Mapping[str, str], kind: int, source: str
    ) -> list[Mount]:
        now = time.time_ns()
        with self._database.transaction() as tx:
            self._vacant(scope, key)
            below = self._parent(scope, parent)
            parents = self.chain(below) if below is not None else []
            cursor = tx.execute(
                "INSERT INTO snapshots (snapshotter, namespace, key, parent, kind, labels, created_at, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (self.name, scope.namespace, key, below, kind, pack_labels(labels), now, now),
            )
            id = int(cursor.lastrowid or 0)
            self._make_directory(id, source, parents, kind)
            tx.claim(scope, self._resource, key)
            if kind == ACTIVE:
                event = event_types_pb2.SnapshotPrepare(key=key, parent=parent, snapshotter=self.name)
                tx.after(lambda: self._publish(scope.namespace, "/snapshot/prepare", event))
            return self._mounts(id, parents, kind)

    # Directories

    def path(self, id: int) -> str:
        return f"{self.directory}/{id}"

    def _make_directory(self, id: int, source: str, parents: Sequence[int], kind: int) -> None:
        path = self.path(id)
        try:
            self._make(path, source, parents, kind)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # A transaction that was rolled back had made it: the number was never anybody's.
            self._take_away([id])
            self._make(path, source, parents, kind)

    def _ids(self) -> set[int]:
        rows = self._database.rows("SELECT id FROM snapshots WHERE snapshotter = ?", (self.name,))
        return {row[0] for row in rows}

    def _take_away(self, ids: Iterable[int]) -> None:
        """Rename directories so that they are no snapshot's any more; quick."""
        for id in ids:
            try:
                os.rename(self.path(id), f"{self.directory}/{_GONE}{id}-{time.monotonic_ns()}")
            except FileNotFoundError:
                continue

    def _delete_soon(self) -> None:
        threading.Thread(target=self._delete, name="snapshot-delete", daemon=True).start()

    def _delete(self) -> None:
        # One at a time; who comes second finds what was taken away since then.
        with self._deleting:
            for name in os.listdir(self.directory):
                if name.startswith(_GONE):
                    remove_tree(os.path.join(self.directory, name))

    def _recover(self) -> None:
        names = os.listdir(self.directory)
        for name in names:
            if name.startswith(MAKING):
                os.rename(f"{self.directory}/{name}", f"{self.directory}/{_GONE}{name}-{time.monotonic_ns()}")
        present = {int(name) for name in names if name.isdigit()}
        with self._database.transaction() as tx:
            self._drop_rows(tx, (self._ids() - present) | self._never_written())
            known = self._ids()
            self._take_away(present - known)
        if any(not name.isdigit() for name in names) or present - known:
            self._delete_soon()

    def _never_written(self) -> set[int]:
        """Snapshots that may have lost bytes with the power; those of this boot are only written now."""
        rows = self._database.rows(
            "SELECT u.id, u.boot FROM snapshots_unsynced u JOIN snapshots s USING (id) WHERE s.snapshotter = ?",
            (self.name,),
        )
        lost = {id for id, boot in rows if boot != boot_id()}
        if len(lost) < len(rows):
            mounting.sync_file_system(self.directory)
        self._settled(row[0] for row in rows)
        return lost

    def _drop_rows(self, tx: Transaction, lost: set[int]) -> None:
        """Rows whose files a power cut lost, with all that was built on them: they can only be pulled again."""
        for id in sorted(lost):
            rows = tx.rows(
                "WITH RECURSIVE above (id) AS (SELECT id FROM snapshots WHERE id = ? UNION"
                " SELECT s.id FROM snapshots s JOIN above ON s.parent = above.id)"
                " SELECT s.id, s.namespace, s.key FROM snapshots s JOIN above USING (id) ORDER BY s.id DESC",
                (id,),
            )
            for row_id, namespace, key in rows:
                log.error(
                    "snapshot was lost with the power and is forgotten", snapshotter=self.name, key=key, id=row_id
                )
                tx.execute("DELETE FROM snapshots WHERE id = ?", (row_id,))
                self._unlease(tx, Scope(namespace), key)


@functools.cache
def boot_id() -> str:
    """The kernel's name of this boot (proc(5), ``random/boot_id``)."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _info(row: Row) -> SnapshotInfo:
    name, parent, kind, created, updated, labels = row
    return SnapshotInfo(name, parent, kind, created, updated, unpack_labels(labels))


def _field(info: SnapshotInfo, path: tuple[str, ...]) -> str | None:
    match path:
        case ("name",):
            return info.name
        case ("parent",):
            return info.parent
        case ("kind",):
            return _KINDS.get(info.kind)
        case ("labels", *rest):
            return info.labels.get(".".join(rest))
    return None


def _merged(current: dict[str, str], labels: Mapping[str, str], fields: Sequence[str]) -> dict[str, str]:
    if not fields:
        return dict(labels)
    merged = dict(current)
    for field in fields:
        if field == "labels":
            merged = dict(labels)
        elif field.startswith("labels."):
            merged[field[7:]] = labels.get(field[7:], "")
        else:
            raise InvalidArgument(f"cannot update field {field!r} of a snapshot: only labels change")
    return merged


def remove_tree(path: str) -> None:
    """Remove ``path`` and all below; what cannot be removed is told in the log and tried again at the next sweep."""

    def failed(_function: object, name: str, exception: tuple[object, BaseException, object]) -> None:
        if not isinstance(exception[1], FileNotFoundError):
            log.warning("cannot remove a snapshot's file", path=name, error=str(exception[1]))

    shutil.rmtree(path, onerror=failed)
