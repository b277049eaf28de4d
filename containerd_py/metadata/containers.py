"""Containers: the metadata that tasks are made from.

Rule: a container is kept byte for byte as the message that the client sent, but for its times; the columns beside it
only repeat what garbage collection needs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from containerd_py import filters as filter_language
from containerd_py.interfaces import Collector, Exchange, Scope
from containerd_py.metadata.database import Database, pack_labels
from containerd_py.metadata.labels import check_labels, masked
from containerd_py.tasks.bundle import check_identifier
from oci import errors
from protos.containerd import event_types_pb2
from protos.containerd.containers_pb2 import Container

UPDATABLE = ("labels", "spec", "extensions", "image", "snapshot_key")
_SPELLINGS = {"snapshotkey": "snapshot_key"}
"""containerd's own client says the first."""


class Containers:
    """``ContainerStore`` over ``database``."""

    def __init__(self, database: Database, exchange: Exchange, collector: Collector) -> None:
        self._database = database
        self._exchange = exchange
        self._collector = collector

    def get(self, scope: Scope, id: str) -> Container:
        row = self._database.row("SELECT data FROM containers WHERE namespace = ? AND id = ?", (scope.namespace, id))
        if row is None:
            raise errors.NotFound(f"container {id!r} in namespace {scope.namespace!r}: not found")
        return Container.FromString(row[0])

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Container]:
        return list(self.each(scope, filters))

    def each(self, scope: Scope, filters: Sequence[str] = ()) -> Iterator[Container]:
        """``list``, decoded one after the other."""
        matches = filter_language.compile_filters(tuple(filters))
        rows = self._database.rows("SELECT data FROM containers WHERE namespace = ? ORDER BY id", (scope.namespace,))
        for (data,) in rows:
            container = Container.FromString(data)
            if not filters or matches(_lookup(container)):
                yield container

    def create(self, scope: Scope, container: Container) -> Container:
        made = Container()
        made.CopyFrom(container)
        _drop_empty_labels(made)
        _check(made)
        made.created_at.CopyFrom(_now())
        made.updated_at.CopyFrom(made.created_at)
        with self._database.transaction() as tx:
            tx.know(scope.namespace)
            values = (scope.namespace, made.id, *_columns(made))
            if tx.execute("INSERT OR IGNORE INTO containers VALUES (?, ?, ?, ?, ?, ?, ?)", values).rowcount == 0:
                raise errors.AlreadyExists(f"container {made.id!r}: already exists")
            event = event_types_pb2.ContainerCreate(id=made.id, image=made.image)
            event.runtime.name = made.runtime.name
            if made.runtime.HasField("options"):
                event.runtime.options.CopyFrom(made.runtime.options)
            tx.after(lambda: self._exchange.publish(scope.namespace, "/containers/create", event))
        return made

    def update(self, scope: Scope, container: Container, fields: Sequence[str] = ()) -> Container:
        with self._database.transaction() as tx:
            updated = self.get(scope, container.id)
            if not fields:
                _refuse_immutable(updated, container)
            for field in fields or UPDATABLE:
                _apply(updated, container, _SPELLINGS.get(field, field))
            _drop_empty_labels(updated)
            _check(updated)
            updated.updated_at.CopyFrom(_now())
            tx.execute(
                "UPDATE containers SET image = ?, snapshotter = ?, snapshot_key = ?, labels = ?, data = ?"
                " WHERE namespace = ? AND id = ?",
                (*_columns(updated), scope.namespace, container.id),
            )
            event = event_types_pb2.ContainerUpdate(
                id=updated.id, image=updated.image, labels=updated.labels, snapshot_key=updated.snapshot_key
            )
            tx.after(lambda: self._exchange.publish(scope.namespace, "/containers/update", event))
        return updated

    def delete(self, scope: Scope, id: str) -> None:
        with self._database.transaction() as tx:
            gone = tx.execute("DELETE FROM containers WHERE namespace = ? AND id = ?", (scope.namespace, id))
            if gone.rowcount == 0:
                raise errors.NotFound(f"container {id!r} in namespace {scope.namespace!r}: not found")
            event = event_types_pb2.ContainerDelete(id=id)
            tx.after(lambda: self._exchange.publish(scope.namespace, "/containers/delete", event))
            tx.after(self._collector.schedule)


def _columns(container: Container) -> tuple[str, str, str, str, bytes]:
    return (
        container.image,
        container.snapshotter,
        container.snapshot_key,
        pack_labels(container.labels),
        container.SerializeToString(),
    )


def _check(container: Container) -> None:
    check_identifier("container id", container.id)
    check_labels(container.labels)
    problem = ""
    if "" in container.extensions:
        problem = "an extension has no name"
    elif container.snapshot_key and not container.snapshotter:
        problem = "the snapshotter must be set when the snapshot key is"
    elif not container.runtime.name:
        problem = "the runtime must be set"
    elif not container.HasField("spec"):
        problem = "the spec must be set"
    if problem:
        raise errors.InvalidArgument(f"container {container.id!r}: {problem}")


def _refuse_immutable(old: Container, new: Container) -> None:
    for what, before, after in (
        ("snapshotter", old.snapshotter, new.snapshotter),
        ("runtime", old.runtime.name, new.runtime.name),
    ):
        if before != after:
            raise errors.InvalidArgument(f"container {old.id!r}: the {what} cannot be changed")


def _apply(to: Container, source: Container, field: str) -> None:
    if field == "labels" or field.startswith("labels."):
        labels = masked(to.labels, source.labels, (field,), f"container {to.id!r}")
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
    elif field == "image":
        to.image = source.image
    elif field == "snapshot_key":
        to.snapshot_key = source.snapshot_key
    else:
        raise errors.InvalidArgument(f"cannot update {field!r} of container {to.id!r}")


def _drop_empty_labels(container: Container) -> None:
    for key in [key for key, value in container.labels.items() if not value]:
        del container.labels[key]


def _lookup(container: Container) -> filter_language.Lookup:
    fields = {"id": container.id, "image": container.image, "runtime.name": container.runtime.name}
    return filter_language.lookup_in(fields, container.labels)


def _now() -> Timestamp:
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)
