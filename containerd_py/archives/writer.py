"""Writing an image archive that is an OCI layout and a ``docker save`` archive at once, blobs shared.

Rule: the same images give the same bytes: no times, no owners, blobs ordered by digest. Memory does not grow with the
images: a blob passes through piece by piece.
"""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import msgspec

from containerd_py.archives.layout import NAME, REF_NAME
from containerd_py.interfaces import ContentStore, Scope
from oci import digest as digests
from oci import reference as references
from oci.errors import DataLoss, InvalidArgument
from oci.image import MEDIA_INDEX, Descriptor, Manifest

PIECE = 1 << 20
_BLOCK = 512
_END = b"\0" * 1024


class Exported(NamedTuple):
    """An image to write: its names, its target, and the manifest that ``docker load`` shall see (None for none)."""

    names: tuple[str, ...]
    target: Descriptor
    docker: Manifest | None = None


async def write_archive(
    content: ContentStore, scope: Scope, images: Sequence[Exported], blobs: Sequence[Descriptor]
) -> AsyncIterator[bytes]:
    """The tar of ``images``, whose blobs are ``blobs``, piece by piece. Raises ``NotFound`` when one is missing."""
    ordered = {blob.digest: blob for blob in sorted(blobs, key=lambda blob: blob.digest)}
    yield _directory("blobs/")
    for algorithm in sorted({digests.parse(digest)[0] for digest in ordered}):
        yield _directory(f"blobs/{algorithm}/")
    for digest in ordered:
        async for piece in _blob(content, scope, digest):
            yield piece
    for name, data in _documents(images):
        yield _header(name, len(data)) + data + _padding(len(data))
    yield _END


def _documents(images: Sequence[Exported]) -> list[tuple[str, bytes]]:
    encode = msgspec.json.Encoder(order="deterministic").encode
    entries = [_entry(image.target, name) for image in images for name in image.names or ("",)]
    index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": entries}
    docker = [_docker(image.names, image.docker) for image in images if image.docker is not None]
    documents = [("index.json", encode(index))]
    if docker:
        documents.append(("manifest.json", encode(docker)))
    return [*documents, ("oci-layout", encode({"imageLayoutVersion": "1.0.0"}))]


def _entry(target: Descriptor, name: str) -> dict[str, object]:
    entry: dict[str, object] = {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
    if name:
        tag = _parsed(name)
        entry["annotations"] = {NAME: name, **({REF_NAME: tag.tag} if tag is not None and tag.tag else {})}
    return entry


def _docker(names: Sequence[str], manifest: Manifest) -> dict[str, object]:
    parsed = [reference for name in names if (reference := _parsed(name)) is not None and reference.tag]
    return {
        "Config": blob_path(manifest.config.digest),
        "RepoTags": [reference._replace(digest="").familiar for reference in parsed] or None,
        "Layers": [blob_path(layer.digest) for layer in manifest.layers],
    }


def _parsed(name: str) -> references.Reference | None:
    try:
        return references.parse(name)
    except InvalidArgument:
        return None


def blob_path(digest: str) -> str:
    """Where a blob is in an archive."""
    algorithm, encoded = digests.parse(digest)
    return f"blobs/{algorithm}/{encoded}"


async def _blob(content: ContentStore, scope: Scope, digest: str) -> AsyncIterator[bytes]:
    with content.open(scope, digest) as blob:
        yield _header(blob_path(digest), blob.size)
        at = 0
        while at < blob.size:
            data = await asyncio.to_thread(blob.read, min(PIECE, blob.size - at), at)
            if not data:
                raise DataLoss(f"blob {digest} ends after {at} of {blob.size} bytes", hint="pull the image again")
            at += len(data)
            yield data
        if padding := _padding(blob.size):
            yield padding


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.GNU_FORMAT)


def _directory(name: str) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return b"\0" * (-size % _BLOCK)
