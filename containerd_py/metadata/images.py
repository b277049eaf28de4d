"""Images: names for descriptors.

Rule: what a name points to changes in one step; nobody ever finds a name without a target.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from containerd_py import filters as filter_language
from containerd_py.interfaces import Collector, Exchange, Image, Scope
from containerd_py.metadata.database import Database, Row, pack_labels, unpack_labels
from containerd_py.metadata.labels import check_labels, masked
from oci import digest, errors
from oci.image import Descriptor
from protos.containerd import images_pb2

_COLUMNS = "name, target, labels, created_at, updated_at"
_decode_target = msgspec.json.Decoder(Descriptor).decode
_encode = msgspec.json.encode


class Images:
    """``ImageStore`` over ``database``."""

    def __init__(self, database: Database, exchange: Exchange, collector: Collector) -> None:
        self._database = database
        self._exchange = exchange
        self._collector = collector

    def get(self, scope: Scope, name: str) -> Image:
        row = self._database.row(
            f"SELECT {_COLUMNS} FROM images WHERE namespace = ? AND name = ?",  # noqa: S608 - a constant
            (scope.namespace, name),
        )
        if row is None:
            raise errors.NotFound(f"image {name!r}: not found")
        return _image(row)

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Image]:
        matches = filter_language.compile_filters(tuple(filters))
        rows = self._database.rows(
            f"SELECT {_COLUMNS} FROM images WHERE namespace = ? ORDER BY name",  # noqa: S608 - a constant
            (scope.namespace,),
        )
        images = map(_image, rows)
        return [image for image in images if matches(_lookup(image))] if filters else list(images)

    def create(self, scope: Scope, image: Image) -> Image:
        _check(image)
        now = image.created_at or time.time_ns()
        labels = pack_labels(image.labels)
        values = (scope.namespace, image.name, image.target.digest, _encode(image.target).decode(), labels, now, now)
        with self._database.transaction() as tx:
            tx.know(scope.namespace)
            if tx.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", values).rowcount == 0:
                raise errors.AlreadyExists(f"image {image.name!r}: already exists")
            event = images_pb2.ImageCreate(name=image.name, labels=image.labels)
            tx.after(lambda: self._exchange.publish(scope.namespace, "/images/create", event))
        return Image(image.name, image.target, unpack_labels(labels), now, now)

    def update(self, scope: Scope, image: Image, fields: Sequence[str] = ()) -> Image:
        what = f"image {image.name!r}"
        with self._database.transaction() as tx:
            old = self.get(scope, image.name)
            target, label_fields = _masked_target(old.target, image.target, fields)
            labels = old.labels if fields and not label_fields else masked(old.labels, image.labels, label_fields, what)
            new = Image(image.name, target, labels, old.created_at, image.updated_at or time.time_ns())
            _check(new)
            tx.execute(
                "UPDATE images SET digest = ?, target = ?, labels = ?, updated_at = ? WHERE namespace = ? AND name = ?",
                (
                    target.digest,
                    _encode(target).decode(),
                    pack_labels(labels),
                    new.updated_at,
                    scope.namespace,
                    image.name,
                ),
            )
            event = images_pb2.ImageUpdate(name=image.name, labels=labels)
            tx.after(lambda: self._exchange.publish(scope.namespace, "/images/update", event))
            if target.digest != old.target.digest:
                tx.after(self._collector.schedule)
        return new

    def delete(self, scope: Scope, name: str, target: str = "") -> None:
        with self._database.transaction() as tx:
            found = self.get(scope, name).target.digest
            if target and target != found:
                raise errors.NotFound(f"image {name!r} with target {target}: not found, it points to {found}")
            tx.execute("DELETE FROM images WHERE namespace = ? AND name = ?", (scope.namespace, name))
            tx.execute(
                "DELETE FROM lease_resources WHERE namespace = ? AND type = 'images' AND id = ?",
                (scope.namespace, name),
            )
            event = images_pb2.ImageDelete(name=name)
            tx.after(lambda: self._exchange.publish(scope.namespace, "/images/delete", event))
            tx.after(self._collector.schedule)


def _image(row: Row) -> Image:
    name, target, labels, created_at, updated_at = row
    return Image(name, _decode_target(target), unpack_labels(labels), created_at, updated_at)


def _check(image: Image) -> None:
    if not image.name:
        raise errors.InvalidArgument("image name must not be empty")
    digest.parse(image.target.digest)
    if image.target.size < 0:
        raise errors.InvalidArgument(f"image {image.name!r}: size of the target is negative")
    check_labels(image.labels)


def _masked_target(old: Descriptor, new: Descriptor, fields: Sequence[str]) -> tuple[Descriptor, list[str]]:
    """The target after an update, and those of ``fields`` that speak of labels."""
    target = old if fields else new
    rest: list[str] = []
    for field in fields:
        if field == "target":
            target = new
        elif field == "annotations":
            target = msgspec.structs.replace(target, annotations=new.annotations)
        elif field.startswith("annotations."):
            key = field.removeprefix("annotations.")
            annotations = target.annotations | {key: new.annotations.get(key, "")}
            target = msgspec.structs.replace(target, annotations=annotations)
        else:
            rest.append(field)
    return target, rest


def _lookup(image: Image) -> filter_language.Lookup:
    fields = {"name": image.name, "target.digest": image.target.digest, "target.mediatype": image.target.media_type}
    plain = filter_language.lookup_in(fields, image.labels)
    annotations = image.target.annotations
    return lambda path: annotations.get(".".join(path[1:])) if path[0] == "annotations" else plain(path)
