"""Which manifest of an index suits a platform.

Rule: an exact match is best, an older variant of the same family runs too, and what names no platform (attestations,
``unknown/unknown``) never runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from oci.image import Descriptor, Platform

ATTESTATION = "vnd.docker.reference.type"
"""Annotation of manifests that say something about another manifest and are no images."""

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386", "armv7l": "arm", "armv6l": "arm"}
_VARIANTS = {"armv7l": "v7", "armv6l": "v6"}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm", "armel": "arm"}
_DEFAULT_VARIANT = {"arm": 7, "arm64": 8, "amd64": 1}


def host() -> Platform:
    """The platform of this machine."""
    machine = os.uname().machine
    return Platform(_MACHINES.get(machine, machine), "linux", variant=_VARIANTS.get(machine, ""))


def _variant(platform: Platform) -> int:
    number = platform.variant.removeprefix("v").partition(".")[0]
    return int(number) if number.isdigit() else _DEFAULT_VARIANT.get(_architecture(platform), 0)


def _architecture(platform: Platform) -> str:
    name = platform.architecture.lower()
    return _ALIASES.get(name, name)


def is_image(descriptor: Descriptor) -> bool:
    """Whether a manifest in an index is an image, not a statement about one."""
    platform = descriptor.platform
    unknown = platform is not None and "unknown" in (platform.os, platform.architecture)
    return not unknown and ATTESTATION not in descriptor.annotations


def rank(wanted: Platform, offered: Platform | None) -> int:
    """How well ``offered`` suits: 0 not at all, more is better. No platform at all suits any, but worst."""
    if offered is None or not (offered.os or offered.architecture):
        return 1
    if offered.os.lower() != (wanted.os or "linux").lower() or _architecture(offered) != _architecture(wanted):
        return 0
    above = _variant(offered) - _variant(wanted)
    return 0 if above > 0 else 100 + above


def best(wanted: Platform, manifests: Iterable[Descriptor]) -> Descriptor | None:
    """The manifest that suits ``wanted`` best, the first of equals; None when none does."""
    images = [manifest for manifest in manifests if is_image(manifest)]
    found = max(images, key=lambda manifest: rank(wanted, manifest.platform), default=None)
    return found if found is not None and rank(wanted, found.platform) else None


def select(manifests: Sequence[Descriptor], wanted: Sequence[Platform]) -> list[Descriptor]:
    """The manifests to have for ``wanted`` platforms, in the index's order; all when none is wanted."""
    if not wanted:
        return list(manifests)
    chosen = {found.digest for platform in wanted if (found := best(platform, manifests)) is not None}
    return [manifest for manifest in manifests if manifest.digest in chosen]


def text(platform: Platform) -> str:
    """``linux/arm/v7``."""
    parts = (platform.os or "linux", platform.architecture, platform.variant)
    return "/".join(part for part in parts if part)
