"""The inline cache: keys of an image's steps kept in its configuration, for builds elsewhere (``--cache-from``).

Rule: asked for with ``--build-arg BUILDKIT_INLINE_CACHE=1``, as with docker; what an image says is only believed for
keys, whose layers are its own.
"""

from __future__ import annotations

import msgspec

from engine.build.cache import BuildCache, Entry
from engine.build.options import BuildOptions
from engine.images.records import Decoded
from oci.image import Descriptor, ImageConfig

ARGUMENT = "BUILDKIT_INLINE_CACHE"


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step: its key, and which of the image's layers it made (-1: none)."""

    key: str
    description: str
    created: str
    layer: int = -1


class _Document(msgspec.Struct, frozen=True):
    """The part of a configuration that is read here."""

    items: tuple[Item, ...] = msgspec.field(name="io.gantry.buildcache.v0", default=())


class InlineConfig(ImageConfig, frozen=True, omit_defaults=True):
    """A configuration with the keys of its steps."""

    items: tuple[Item, ...] = msgspec.field(name="io.gantry.buildcache.v0", default=())


def wanted(options: BuildOptions) -> bool:
    """Whether the image shall carry its keys."""
    return options.build_args.get(ARGUMENT, "").lower() in ("1", "true")


def with_items(config: ImageConfig, items: tuple[Item, ...]) -> ImageConfig:
    """``config`` carrying ``items``."""
    return InlineConfig(**{name: getattr(config, name) for name in ImageConfig.__struct_fields__}, items=items)


async def take(cache: BuildCache, raw: bytes, image: Decoded) -> int:
    """Put the steps of ``image``, whose configuration is ``raw``, into ``cache``; how many were new."""
    try:
        items = msgspec.json.decode(raw, type=_Document).items
    except msgspec.DecodeError:
        return 0
    fresh = 0
    for item in items:
        if item.layer >= len(image.layers) or await cache.get(item.key) is not None:
            continue
        blob: Descriptor | None = None
        diff_id = ""
        if item.layer >= 0:
            blob, diff_id = image.layers[item.layer], image.config.rootfs.diff_ids[item.layer]
            await cache.hold(blob.digest)
        cache.put(Entry(key=item.key, description=item.description, created=item.created, blob=blob, diff_id=diff_id))
        fresh += 1
    return fresh
