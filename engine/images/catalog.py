"""Which images there are and which one a name or an id means.

Rule: names are asked of containerd; what stands behind a target is decoded once, since its digest says it all.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TypeVar

import msgspec
import structlog

from engine.images.containerd import Containerd
from engine.images.records import PARENT_LABEL, Decoded, Image, Record
from engine.platforms import host_platform, platform_rank, spelled
from oci import digest as digests
from oci import image as image_documents
from oci import reference as references
from oci.errors import DataLoss, GantryError, InvalidArgument, NotFound
from oci.image import INDEX_TYPES, MANIFEST_TYPES, Descriptor, ImageConfig, Index, Manifest, Platform
from oci.reference import Reference

log = structlog.get_logger()

T = TypeVar("T")

MAX_DECODED = 4096
MAX_DOCUMENT = 8 << 20
"""Bytes of a manifest, an index or a config that are read into memory."""

_ID_PREFIX = re.compile(r"(?:sha256:)?[0-9a-f]+")
_ID = re.compile(r"(?:sha256:)?[0-9a-f]{64}")


def other_platform(reference: str, config: ImageConfig, wanted: Platform) -> NotFound:
    """Docker's error for an image that is here for another platform only; the CLI then pulls."""
    return NotFound(
        f"image with reference {reference} was found but does not match the specified platform: "
        f"wanted {spelled(wanted)}, actual: {spelled(config)}"
    )


def no_such_image(reference: str) -> NotFound:
    """Docker's error for an image that is not here."""
    return NotFound(f"No such image: {reference}")


class Catalog:
    """Finds and decodes. ``wanted`` is the platform whose manifest is taken from an index."""

    def __init__(self, containerd: Containerd, wanted: Platform | None = None) -> None:
        self._containerd = containerd
        self.wanted = wanted or host_platform()
        self._decoded: OrderedDict[str, Decoded] = OrderedDict()

    def forget(self) -> None:
        """Drop what was decoded: blobs may have gone."""
        self._decoded.clear()

    async def document(self, descriptor: Descriptor, kind: type[T]) -> T:
        """A manifest, index or config, checked against its digest. Raises ``NotFound``, ``DataLoss``."""
        if descriptor.size > MAX_DOCUMENT:
            raise InvalidArgument(f"{descriptor.digest} is {descriptor.size} bytes, too long for a {kind.__name__}")
        raw = await self._containerd.read(descriptor.digest)
        digests.verify(raw, descriptor.digest, f"{kind.__name__} blob")
        try:
            return image_documents.decode(raw, kind)
        except msgspec.DecodeError as error:
            raise DataLoss(f"{descriptor.digest} is not a valid {kind.__name__}: {error}") from None

    async def decode(self, target: Descriptor, wanted: Platform | None = None) -> Decoded:
        """The image behind ``target`` for our platform. Raises ``NotFound`` when a part is not here."""
        key = target.digest if wanted is None else f"{target.digest} {wanted}"
        known = self._decoded.get(key)
        if known is None:
            manifest_at = await self.manifest_of(target, wanted or self.wanted)
            manifest = await self.document(manifest_at, Manifest)
            config = await self.document(manifest.config, ImageConfig)
            labels = await self._containerd.labels(manifest.config.digest)
            known = self._decoded[key] = Decoded(
                target,
                manifest_at,
                manifest.config,
                manifest.layers,
                config,
                digests.chain_id(config.rootfs.diff_ids),
                labels.get(PARENT_LABEL, ""),
            )
            if len(self._decoded) > MAX_DECODED:
                self._decoded.popitem(last=False)
        return known

    async def manifest_of(self, target: Descriptor, wanted: Platform) -> Descriptor:
        """The best manifest of ``target`` that is here."""
        if target.media_type not in INDEX_TYPES:
            return target
        index = await self.document(target, Index)
        ranked = sorted(
            ((platform_rank(m.platform, wanted), -n, m) for n, m in enumerate(index.manifests)), key=lambda r: r[:2]
        )
        for rank, _, manifest in reversed(ranked):
            is_image = manifest.media_type in (*MANIFEST_TYPES, *INDEX_TYPES)
            # Pulled for another platform only: still an image, to be listed, saved and run by emulation.
            suits = rank or wanted == self.wanted
            if suits and is_image and not _attestation(manifest) and await self._containerd.has(manifest.digest):
                return await self.manifest_of(manifest, wanted)
        raise NotFound(
            f"image {target.digest} has no manifest for {wanted.os}/{wanted.architecture} here",
            hint="pull it with --platform, or pull it again",
        )

    async def children(self, target: Descriptor) -> list[Descriptor]:
        """Manifests of an index, or the manifest itself."""
        if target.media_type not in INDEX_TYPES:
            return [target]
        return list((await self.document(target, Index)).manifests)

    async def all(self) -> list[Image]:
        """Every image with its names. What cannot be decoded (another platform's, damaged) is left out."""
        by_id: dict[str, tuple[Decoded, list[Record]]] = {}
        for record in await self._containerd.list():
            try:
                decoded = await self.decode(record.target)
            except GantryError as error:
                log.debug("image left out", name=record.name, error=str(error))
                continue
            by_id.setdefault(decoded.id, (decoded, []))[1].append(record)
        return [Image(decoded, tuple(records)) for decoded, records in by_id.values()]

    async def find(self, text: str) -> Image:
        """The image with this name, digest reference, id or unique id prefix.

        Raises ``NotFound("No such image: x:latest")``, ``InvalidArgument`` for what is no reference.
        """
        images = await self.all()
        if _ID.fullmatch(text):
            wanted = text if ":" in text else f"sha256:{text}"
            # A target's digest is an id too: tools made for Docker's containerd store name images by it.
            found = [i for i in images if i.id == wanted] or [
                i for i in images if wanted in (i.decoded.manifest.digest, *(r.target.digest for r in i.records))
            ]
            if not found:
                raise no_such_image(wanted)
            return found[0]
        reference = references.parse(text).tagged()
        for image in images:
            if any(names(record, reference) for record in image.records):
                return image
        matches = [i for i in images if is_id_prefix(i.id, text)]
        if len(matches) != 1:
            raise no_such_image(reference.familiar)
        return matches[0]

    async def find_record(self, text: str) -> Record:
        """The record of a name, or the first of an id's, without a full listing where that is possible."""
        if not _ID.fullmatch(text):
            reference = references.parse(text).tagged()
            try:
                return await self._containerd.get(str(reference))
            except NotFound:
                pass
        return (await self.find(text)).records[0]


def names(record: Record, reference: Reference) -> bool:
    """Whether ``reference`` means ``record``. A digest beats a tag, as in Docker."""
    own = record.reference
    if own is None or own.name != reference.name:
        return False
    if reference.digest:
        return reference.digest in (own.digest, record.target.digest)
    return own.tag == reference.tag and not own.digest


def is_id_prefix(image_id: str, text: str) -> bool:
    """Whether ``text`` is the start of ``image_id``, with or without its algorithm."""
    return bool(_ID_PREFIX.fullmatch(text)) and (
        image_id.startswith(text) or image_id.partition(":")[2].startswith(text)
    )


def _attestation(manifest: Descriptor) -> bool:
    return manifest.annotations.get("vnd.docker.reference.type") == "attestation-manifest"
