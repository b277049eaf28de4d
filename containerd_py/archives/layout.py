"""What an archive's documents say: its images, with the names they had where they come from.

Rule: ``index.json`` is the truth where there is one; ``manifest.json`` adds names to it, or stands alone in archives of
``docker save`` before 25 and of podman. Manifests made for those are always the same bytes for the same archive.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import msgspec

from containerd_py.archives.reader import Contents, Stored
from oci import digest as digests
from oci import image as image_documents
from oci.errors import DataLoss, InvalidArgument, Unimplemented
from oci.image import (
    INDEX_TYPES,
    MEDIA_CONFIG,
    MEDIA_LAYER,
    MEDIA_LAYER_GZIP,
    MEDIA_LAYER_ZSTD,
    MEDIA_MANIFEST,
    Descriptor,
    Index,
    Manifest,
)

_K = TypeVar("_K")

NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
_MAGIC = ((b"\x1f\x8b", MEDIA_LAYER_GZIP), (b"\x28\xb5\x2f\xfd", MEDIA_LAYER_ZSTD))
_REFUSED = ((b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"))


class DockerImage(msgspec.Struct, frozen=True, rename="pascal"):
    """An entry of ``manifest.json``."""

    config: str
    layers: tuple[str, ...] = ()
    repo_tags: tuple[str, ...] | None = None


class FoundImage(NamedTuple):
    """An image of an archive: ``target`` without annotations, ``names`` as the archive gives them."""

    target: Descriptor
    names: tuple[str, ...]
    made: bytes = b""
    """The manifest, where the archive has none and it was made from ``manifest.json``."""


def images(contents: Contents) -> list[FoundImage]:
    """The images of an archive, in its order. Raises ``InvalidArgument`` when it is no image archive."""
    docker = _docker(contents)
    if "index.json" in contents.documents:
        index = _decode(contents.documents["index.json"], Index, "index.json")
        if index.manifests or not docker:
            return _merged(index.manifests)
    if docker:
        return [_made(contents, image) for image in docker]
    if "repositories" in contents.documents:
        raise InvalidArgument(
            "invalid archive: does not contain a manifest.json",
            hint="Docker before 1.10 saved it: load it with a Docker before 29, and save it again",
        )
    raise InvalidArgument("invalid archive: neither index.json (OCI layout) nor manifest.json (docker save) is in it")


def docker_names(contents: Contents) -> dict[str, tuple[str, ...]]:
    """Names in ``manifest.json`` by the digest of the image's config; for archives that are both."""
    found: dict[str, tuple[str, ...]] = {}
    for image in _docker(contents):
        digest = contents.find(image.config).digest
        found[digest] = (*found.get(digest, ()), *(image.repo_tags or ()))
    return found


def _docker(contents: Contents) -> list[DockerImage]:
    data = contents.documents.get("manifest.json")
    return _decode(data, list[DockerImage], "manifest.json") if data is not None else []


def _decode(data: bytes, kind: type[_K], what: str) -> _K:
    try:
        return image_documents.decode(data, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataLoss(f"{what} in the archive cannot be read: {error}") from error


def _merged(manifests: tuple[Descriptor, ...]) -> list[FoundImage]:
    """One image per digest, with all its names."""
    found: dict[str, FoundImage] = {}
    for manifest in manifests:
        name = manifest.annotations.get(NAME) or manifest.annotations.get(REF_NAME) or ""
        target = Descriptor(manifest.media_type or _guess(manifest), manifest.digest, manifest.size)
        known = found.get(manifest.digest)
        names = (*(known.names if known else ()), *((name,) if name else ()))
        found[manifest.digest] = FoundImage(target, names)
    return list(found.values())


def _guess(manifest: Descriptor) -> str:
    return MEDIA_MANIFEST if manifest.media_type not in INDEX_TYPES else manifest.media_type


def _made(contents: Contents, image: DockerImage) -> FoundImage:
    config = contents.find(image.config)
    layers = [_layer(contents.find(name), name) for name in image.layers]
    manifest = Manifest(Descriptor(MEDIA_CONFIG, config.digest, config.size), tuple(layers), MEDIA_MANIFEST)
    # schemaVersion must be written although it is the default.
    document = {**msgspec.to_builtins(manifest), "schemaVersion": 2}
    data = msgspec.json.encode(document, order="deterministic")
    target = Descriptor(MEDIA_MANIFEST, digests.of_bytes(data), len(data))
    return FoundImage(target, tuple(image.repo_tags or ()), data)


def _layer(stored: Stored, name: str) -> Descriptor:
    for magic, what in _REFUSED:
        if stored.head.startswith(magic):
            raise Unimplemented(f"layer {name!r} of the archive is compressed with {what}")
    for magic, media_type in _MAGIC:
        if stored.head.startswith(magic):
            return Descriptor(media_type, stored.digest, stored.size)
    return Descriptor(MEDIA_LAYER, stored.digest, stored.size)
