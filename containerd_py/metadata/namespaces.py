"""Namespaces: who sees what.

Rule: a namespace exists from the first object in it on, or because somebody created it, until it is deleted; and it is
deleted only when nothing is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from containerd_py.interfaces import Exchange
from containerd_py.metadata.database import Database, pack_labels, unpack_labels
from containerd_py.metadata.labels import check_labels, masked
from oci import errors
from protos.containerd import event_types_pb2

_OBJECTS = (
    ("images", "images"),
    ("content", "blobs"),
    ("snapshots", "snapshots"),
    ("containers", "containers"),
    ("leases", "leases"),
)


class Namespace(NamedTuple):
    """A namespace with its labels."""

    name: str
    labels: dict[str, str]


class Namespaces:
    """The namespaces of ``database``."""

    def __init__(self, database: Database, exchange: Exchange) -> None:
        self._database = database
        self._exchange = exchange

    def get(self, name: str) -> Namespace:
        """Raises ``NotFound``."""
        row = self._database.row("SELECT name, labels FROM namespaces WHERE name = ?", (name,))
        if row is None:
            raise errors.NotFound(f"namespace {name!r}: not found")
        return Namespace(row[0], unpack_labels(row[1]))

    def list(self) -> list[Namespace]:
        """All of them, by name."""
        rows = self._database.rows("SELECT name, labels FROM namespaces ORDER BY name")
        return [Namespace(name, unpack_labels(labels)) for name, labels in rows]

    def create(self, name: str, labels: Mapping[str, str]) -> Namespace:
        """Raises ``AlreadyExists``."""
        check_labels(labels)
        packed = pack_labels(labels)
        with self._database.transaction() as tx:
            made = tx.execute("INSERT OR IGNORE INTO namespaces VALUES (?, ?)", (name, packed))
            if made.rowcount == 0:
                raise errors.AlreadyExists(f"namespace {name!r}: already exists")
            event = event_types_pb2.NamespaceCreate(name=name, labels=labels)
            tx.after(lambda: self._database.known_namespaces.add(name))
            tx.after(lambda: self._exchange.publish(name, "/namespaces/create", event))
        return Namespace(name, unpack_labels(packed))

    def update(self, name: str, labels: Mapping[str, str], fields: Sequence[str] = ()) -> Namespace:
        """``fields`` of ``labels`` and ``labels.<key>``. Raises ``NotFound``, ``InvalidArgument``."""
        with self._database.transaction() as tx:
            found = masked(self.get(name).labels, labels, fields, f"namespace {name!r}")
            tx.execute("UPDATE namespaces SET labels = ? WHERE name = ?", (pack_labels(found), name))
            event = event_types_pb2.NamespaceUpdate(name=name, labels=found)
            tx.after(lambda: self._exchange.publish(name, "/namespaces/update", event))
        return Namespace(name, found)

    def delete(self, name: str) -> None:
        """Raises ``NotFound``, and ``FailedPrecondition`` while anything is in it."""
        with self._database.transaction() as tx:
            self.get(name)
            left = [
                what
                for table, what in _OBJECTS
                if tx.row(f"SELECT 1 FROM {table} WHERE namespace = ? LIMIT 1", (name,))  # noqa: S608 - names above
            ]
            if left:
                raise errors.FailedPrecondition(f"namespace {name!r} must be empty, but it still has {', '.join(left)}")
            tx.execute("DELETE FROM ingests WHERE namespace = ?", (name,))
            tx.execute("DELETE FROM namespaces WHERE name = ?", (name,))
            event = event_types_pb2.NamespaceDelete(name=name)
            tx.after(lambda: self._database.known_namespaces.discard(name))
            tx.after(lambda: self._exchange.publish(name, "/namespaces/delete", event))
