"""Sandboxes: what is known of groups of containers that share a life, for clients that keep them here (CRI, nerdctl).

Rule: as ``containers``: the client's own message, but for its times. A sandbox is metadata only: nothing runs for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from containerd_py import filters as filter_language
from containerd_py.interfaces import Scope
from containerd_py.metadata.database import Database
from containerd_py.metadata.labels import check_labels, masked
from containerd_py.tasks.bundle import check_identifier
from oci import errors
from protos.containerd.types_pb2 import Sandbox

UPDATABLE = ("labels", "extensions", "spec", "runtime")


class Sandboxes:
    """Sandboxes by (namespace, id)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, scope: Scope, id: str) -> Sandbox:
        """Raises ``NotFound``."""
        row = self._database.row("SELECT data FROM sandboxes WHERE namespace = ? AND id = ?", (scope.namespace, id))
        if row is None:
            raise errors.NotFound(f"sandbox {id!r} in namespace {scope.namespace!r}: not found")
        return Sandbox.FromString(row[0])

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Sandbox]:
        """All that match one of ``filters``, by id."""
        matches = filter_language.compile_filters(tuple(filters))
        rows = self._database.rows("SELECT data FROM sandboxes WHERE namespace = ? ORDER BY id", (scope.namespace,))
        found = (Sandbox.FromString(data) for (data,) in rows)
        return [sandbox for sandbox in found if matches(_lookup(sandbox))]

    def create(self, scope: Scope, sandbox: Sandbox) -> Sandbox:
        """Raises ``AlreadyExists``, ``InvalidArgument``. Sets the times."""
        made = Sandbox()
        made.CopyFrom(sandbox)
        _check(made)
        made.created_at.CopyFrom(_now())
        made.updated_at.CopyFrom(made.created_at)
        with self._database.transaction() as tx:
            tx.know(scope.namespace)
            values = (scope.namespace, made.sandbox_id, made.SerializeToString())
            if tx.execute("INSERT OR IGNORE INTO sandboxes VALUES (?, ?, ?)", values).rowcount == 0:
                raise errors.AlreadyExists(f"sandbox {made.sandbox_id!r}: already exists")
        return made

    def update(self, scope: Scope, sandbox: Sandbox, fields: Sequence[str] = ()) -> Sandbox:
        """Set ``fields`` of ``UPDATABLE`` or keys of its maps (none: all). Raises ``NotFound``, ``InvalidArgument``."""
        with self._database.transaction() as tx:
            updated = self.get(scope, sandbox.sandbox_id)
            for field in fields or UPDATABLE:
                _apply(updated, sandbox, field)
            _check(updated)
            updated.updated_at.CopyFrom(_now())
            tx.execute(
                "UPDATE sandboxes SET data = ? WHERE namespace = ? AND id = ?",
                (updated.SerializeToString(), scope.namespace, sandbox.sandbox_id),
            )
        return updated

    def delete(self, scope: Scope, id: str) -> None:
        """Raises ``NotFound``."""
        with self._database.transaction() as tx:
            gone = tx.execute("DELETE FROM sandboxes WHERE namespace = ? AND id = ?", (scope.namespace, id))
            if gone.rowcount == 0:
                raise errors.NotFound(f"sandbox {id!r} in namespace {scope.namespace!r}: not found")


def _check(sandbox: Sandbox) -> None:
    check_identifier("sandbox id", sandbox.sandbox_id)
    check_labels(sandbox.labels)
    if "" in sandbox.extensions:
        raise errors.InvalidArgument(f"sandbox {sandbox.sandbox_id!r}: an extension has no name")
    if not sandbox.runtime.name:
        raise errors.InvalidArgument(f"sandbox {sandbox.sandbox_id!r}: the runtime must be set")


def _apply(to: Sandbox, source: Sandbox, field: str) -> None:
    if field == "labels" or field.startswith("labels."):
        labels = masked(to.labels, source.labels, (field,), f"sandbox {to.sandbox_id!r}")
        to.labels.clear()
        to.labels.update(labels)
    elif field == "extensions":
        to.extensions.clear()
        to.extensions.MergeFrom(source.extensions)
    elif field.startswith("extensions."):
        name = field.removeprefix("extensions.")
        if name in source.extensions:
            to.extensions[name].CopyFrom(source.extensions[name])
        else:
            to.extensions.pop(name, None)
    elif field == "spec":
        to.spec.CopyFrom(source.spec)
    elif field == "runtime":
        to.runtime.CopyFrom(source.runtime)
    else:
        raise errors.InvalidArgument(f"cannot update {field!r} of sandbox {to.sandbox_id!r}")


def _lookup(sandbox: Sandbox) -> filter_language.Lookup:
    fields = {"id": sandbox.sandbox_id, "runtime.name": sandbox.runtime.name, "sandboxer": sandbox.sandboxer}
    return filter_language.lookup_in(fields, sandbox.labels)


def _now() -> Timestamp:
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)
