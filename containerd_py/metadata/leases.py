"""Leases: sets of resources that garbage collection leaves alone.

Rule: a lease counts from the moment its create returns until it is deleted or its ``GC_EXPIRE`` passes; objects made
under it are in it before anybody can see them (``Transaction.claim``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from containerd_py import filters as filter_language
from containerd_py.interfaces import Collector, Lease, Resource, Scope
from containerd_py.metadata.database import Database, Transaction, pack_labels, unpack_labels
from containerd_py.metadata.labels import check_labels, expiry
from oci import errors


class Leases:
    """``LeaseStore`` over ``database``."""

    def __init__(self, database: Database, collector: Collector) -> None:
        self._database = database
        self._collector = collector

    def create(self, scope: Scope, id: str, labels: Mapping[str, str] = {}) -> Lease:
        """Raises ``AlreadyExists``."""
        check_labels(labels)
        lease = Lease(id or f"{time.time_ns()}-{os.urandom(4).hex()}", time.time_ns(), dict(labels))
        values = (scope.namespace, lease.id, pack_labels(labels), lease.created_at)
        with self._database.transaction() as tx:
            tx.know(scope.namespace)
            if tx.execute("INSERT OR IGNORE INTO leases VALUES (?, ?, ?, ?)", values).rowcount == 0:
                raise errors.AlreadyExists(f"lease {lease.id!r}: already exists")
            if (expires := expiry(labels)) is not None:
                tx.after(lambda: self._collector.wake_at(expires))
        return lease

    def delete(self, scope: Scope, id: str) -> None:
        with self._database.transaction() as tx:
            self._require(tx, scope, id)
            tx.execute("DELETE FROM leases WHERE namespace = ? AND id = ?", (scope.namespace, id))
            tx.after(self._collector.schedule)

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Lease]:
        matches = filter_language.compile_filters(tuple(filters))
        rows = self._database.rows(
            "SELECT id, created_at, labels FROM leases WHERE namespace = ? ORDER BY id", (scope.namespace,)
        )
        leases = [Lease(id, created_at, unpack_labels(labels)) for id, created_at, labels in rows]
        return [lease for lease in leases if matches(filter_language.lookup_in({"id": lease.id}, lease.labels))]

    def add_resource(self, scope: Scope, id: str, resource: Resource) -> None:
        """Raises ``NotFound`` (lease), ``InvalidArgument`` (type). The resource need not exist (yet)."""
        _check(resource)
        with self._database.transaction() as tx:
            self._require(tx, scope, id)
            tx.execute(
                "INSERT OR IGNORE INTO lease_resources VALUES (?, ?, ?, ?)",
                (scope.namespace, id, resource.type, resource.id),
            )

    def delete_resource(self, scope: Scope, id: str, resource: Resource) -> None:
        """Raises ``NotFound`` (lease)."""
        _check(resource)
        with self._database.transaction() as tx:
            self._require(tx, scope, id)
            tx.execute(
                "DELETE FROM lease_resources WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
                (scope.namespace, id, resource.type, resource.id),
            )
            tx.after(self._collector.schedule)

    def resources(self, scope: Scope, id: str) -> Sequence[Resource]:
        """Raises ``NotFound`` (lease)."""
        with self._database.transaction() as tx:
            self._require(tx, scope, id)
            rows = tx.rows(
                "SELECT id, type FROM lease_resources WHERE namespace = ? AND lease = ? ORDER BY type, id",
                (scope.namespace, id),
            )
        return [Resource(*row) for row in rows]

    @staticmethod
    def _require(tx: Transaction, scope: Scope, id: str) -> None:
        if tx.row("SELECT 1 FROM leases WHERE namespace = ? AND id = ?", (scope.namespace, id)) is None:
            raise errors.NotFound(f"lease {id!r}: not found")


def _check(resource: Resource) -> None:
    kind, _, name = resource.type.partition("/")
    if not resource.id:
        raise errors.InvalidArgument(f"resource of type {resource.type!r}: the id must not be empty")
    if kind == "snapshots" and name:
        return
    if resource.type not in {"content", "ingests", "images", "mounts"}:
        raise errors.Unimplemented(f"resource {resource.id!r}: type {resource.type!r} cannot be leased")
