"""Platforms of images and of this machine, in OCI's words.

Rule: a leaf that every room may use; which manifest of an index is taken is the image store's business.
"""

from __future__ import annotations

import platform as machine
import re

from engine.hostinfo import GO_ARCH
from oci.errors import InvalidArgument
from oci.image import ImageConfig, Platform


def host_platform() -> Platform:
    """This machine's platform in OCI's words."""
    name = machine.machine()
    variant = {"armv7l": "v7", "armv6l": "v6", "aarch64": "v8"}.get(name, "")
    return Platform(architecture=GO_ARCH.get(name, name), os="linux", variant=variant)


def platform_rank(offered: Platform | None, wanted: Platform) -> int:
    """How well ``offered`` suits: 0 not at all, more is better. No platform at all suits any, but worst."""
    if offered is None or not offered.os:
        return 1
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return 0
    if offered.variant == wanted.variant:
        return 3
    return 2 if not offered.variant or not wanted.variant else 0


def suits(config: ImageConfig, wanted: Platform) -> bool:
    """Whether an image was made for ``wanted``."""
    return bool(platform_rank(Platform(config.architecture, config.os, variant=config.variant), wanted))


def spelled(platform: Platform | ImageConfig) -> str:
    """``os/arch[/variant]``."""
    return "/".join(filter(None, (platform.os, platform.architecture, platform.variant)))


def parse_platform(text: str) -> Platform:
    """``os/arch[/variant]``, or an architecture alone; raises ``InvalidArgument``."""
    parts = text.split("/")
    if not text or len(parts) > 3 or not all(re.fullmatch(r"[A-Za-z0-9_.-]+", p) for p in parts):
        raise InvalidArgument(f"{text!r}: invalid platform: expected os/arch or os/arch/variant")
    if len(parts) == 1:
        return Platform(architecture=GO_ARCH.get(parts[0], parts[0]), os="linux")
    arch = GO_ARCH.get(parts[1], parts[1])
    variant = parts[2] if len(parts) == 3 else {"arm64": "v8", "arm": "v7"}.get(arch, "")
    return Platform(architecture=arch, os=parts[0], variant=variant)
