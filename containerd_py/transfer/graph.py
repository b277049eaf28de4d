"""Images as graphs of blobs: what refers to what, read from the documents and written into labels.

Rule: a document is read once, bounded, and every digest in it is validated before it is used. Labels tell garbage
collection of every child, here or not yet here, as containerd does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from containerd_py.interfaces import GC_REF_CONTENT, ContentStore, Scope
from oci import digest as digests
from oci import image as images
from oci.errors import DataLoss, FailedPrecondition, NotFound
from oci.image import INDEX_TYPES, MANIFEST_TYPES, Descriptor, ImageConfig, Index, Manifest

T = TypeVar("T", Index, Manifest, ImageConfig)

MAX_DOCUMENT = 8 << 20
"""Bytes of a manifest, index or config that are read into memory."""
SOURCE_LABEL = "containerd.io/distribution.source."
"""Label prefix, completed by a registry host: the repositories there (comma-separated) that have the blob."""


def decode(data: bytes, kind: type[T], what: str) -> T:
    """``data`` as ``kind``. Raises ``DataLoss`` naming ``what``, for digests that are none too."""
    try:
        document: T = images.decode(data, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataLoss(f"{what} cannot be read: {error}") from error
    if isinstance(document, Index):
        check(document.manifests)
    elif isinstance(document, Manifest):
        check((document.config, *document.layers))
    return document


def check(descriptors: Sequence[Descriptor]) -> None:
    """Raises ``InvalidArgument`` for a digest that cannot be verified, ``DataLoss`` for a size below zero."""
    for descriptor in descriptors:
        digests.parse(descriptor.digest)
        if descriptor.size < 0:
            raise DataLoss(f"descriptor of {descriptor.digest} has a size below zero")


def is_index(descriptor: Descriptor) -> bool:
    return descriptor.media_type in INDEX_TYPES


def is_manifest(descriptor: Descriptor) -> bool:
    return descriptor.media_type in MANIFEST_TYPES


def is_layer(descriptor: Descriptor) -> bool:
    """Whether a blob is a file system layer, by its media type."""
    return "layer" in descriptor.media_type or "rootfs" in descriptor.media_type


def read(content: ContentStore, scope: Scope, descriptor: Descriptor, kind: type[T]) -> T:
    """The document behind ``descriptor``. Raises ``NotFound``, ``DataLoss``, ``FailedPrecondition`` (too large)."""
    with content.open(scope, descriptor.digest) as blob:
        if blob.size > MAX_DOCUMENT:
            raise FailedPrecondition(
                f"{descriptor.digest} has {blob.size} bytes, documents have at most {MAX_DOCUMENT}"
            )
        return decode(blob.read(blob.size, 0), kind, descriptor.digest)


def children(content: ContentStore, scope: Scope, descriptor: Descriptor) -> tuple[Descriptor, ...]:
    """What ``descriptor``'s document refers to: manifests, or config and layers; nothing for other blobs."""
    if is_index(descriptor):
        return read(content, scope, descriptor, Index).manifests
    if is_manifest(descriptor):
        manifest = read(content, scope, descriptor, Manifest)
        return (manifest.config, *manifest.layers)
    return ()


def has(content: ContentStore, scope: Scope, digest: str) -> bool:
    """Whether the namespace has the blob."""
    try:
        content.info(scope, digest)
    except NotFound:
        return False
    return True


def complete(content: ContentStore, scope: Scope, descriptor: Descriptor) -> bool:
    """Whether ``descriptor`` and everything below it is here."""
    if not has(content, scope, descriptor.digest):
        return False
    return all(complete(content, scope, child) for child in children(content, scope, descriptor))


def reference_labels(parent: Descriptor, below: Sequence[Descriptor]) -> dict[str, str]:
    """The labels by which ``parent`` keeps its children."""
    labels: dict[str, str] = {}
    if is_index(parent):
        return {f"{GC_REF_CONTENT}.m.{number}": child.digest for number, child in enumerate(below)}
    for number, child in enumerate(below):
        key = "config" if number == 0 else f"l.{number - 1}"
        labels[f"{GC_REF_CONTENT}.{key}"] = child.digest
    return labels


def set_labels(content: ContentStore, scope: Scope, digest: str, labels: dict[str, str]) -> None:
    """Add ``labels`` to a blob, keeping its others."""
    if labels:
        content.update(scope, digest, labels, [f"labels.{key}" for key in labels])


def keep_children(content: ContentStore, scope: Scope, parent: Descriptor, below: Sequence[Descriptor]) -> None:
    """Have ``parent`` keep what is ``below`` it."""
    set_labels(content, scope, parent.digest, reference_labels(parent, below))


def add_source(content: ContentStore, scope: Scope, digest: str, host: str, repository: str) -> None:
    """Note that ``repository`` of ``host`` has the blob."""
    key = SOURCE_LABEL + host
    known = [name for name in content.info(scope, digest).labels.get(key, "").split(",") if name]
    if repository not in known:
        set_labels(content, scope, digest, {key: ",".join([*known, repository])})


def sources(content: ContentStore, scope: Scope, digest: str, host: str) -> list[str]:
    """Repositories of ``host`` that are known to have the blob."""
    labels = content.info(scope, digest).labels
    return [name for name in labels.get(SOURCE_LABEL + host, "").split(",") if name]
