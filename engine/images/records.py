"""The value types of this room: a name in containerd, an image behind a target, and an image with all its names.

Rule: values are frozen; what is decoded from a blob never changes, because a blob never does.
"""

from __future__ import annotations

import msgspec

from oci import reference as references
from oci.image import Descriptor, ImageConfig
from oci.reference import Reference

DANGLING_PREFIX = "moby-dangling@"
"""Names of images without a tag, as Docker's containerd store writes them: this and the target's digest."""

PARENT_LABEL = "org.mobyproject.image.parent"
"""Label of a config blob: the id of the image it was committed or built from."""


class Record(msgspec.Struct, frozen=True):
    """One name in containerd's image store. Times are nanoseconds since the epoch."""

    name: str
    target: Descriptor
    labels: dict[str, str] = {}
    created_at: int = 0
    updated_at: int = 0

    @property
    def dangling(self) -> bool:
        """Whether the name only keeps an image without a tag."""
        return self.name.startswith(DANGLING_PREFIX)

    @property
    def reference(self) -> Reference | None:
        """The name parsed; None for a dangling one and for names that others gave and Docker cannot show."""
        if self.dangling:
            return None
        try:
            return references.parse(self.name)
        except Exception:
            return None


class Decoded(msgspec.Struct, frozen=True):
    """The image for this platform behind a target. ``id`` is the config's digest; ``diff_ids`` are in ``config``."""

    target: Descriptor
    manifest: Descriptor
    config_blob: Descriptor
    layers: tuple[Descriptor, ...]
    config: ImageConfig
    chain_id: str
    parent: str

    @property
    def id(self) -> str:
        return self.config_blob.digest


class Image(msgspec.Struct, frozen=True):
    """An image id with every record that leads to it, in order of name."""

    decoded: Decoded
    records: tuple[Record, ...]

    @property
    def id(self) -> str:
        return self.decoded.id

    @property
    def references(self) -> tuple[Reference, ...]:
        """The names Docker shows; empty for a dangling image."""
        return tuple(r for r in (record.reference for record in self.records) if r is not None)

    @property
    def tags(self) -> list[str]:
        """``RepoTags``."""
        return [r._replace(digest="").familiar for r in self.references if r.tag]

    @property
    def digests(self) -> list[str]:
        """``RepoDigests``: every repository with the digest its name points at."""
        pairs = ((record.reference, record.target.digest) for record in self.records)
        return list(dict.fromkeys(r.with_digest(digest).familiar for r, digest in pairs if r is not None))

    @property
    def dangling(self) -> bool:
        return not self.references


def dangling_name(target_digest: str) -> str:
    """The name that keeps the image behind ``target_digest`` while it has no tag."""
    return DANGLING_PREFIX + target_digest


def short_id(image_id: str) -> str:
    """Docker's twelve digits of an id."""
    return image_id.rpartition(":")[2][:12]
