"""What a shim is told when it starts."""

from __future__ import annotations

from typing import NamedTuple


class ShimConfig(NamedTuple):
    """All paths are absolute; ``keeper`` and ``zygote`` are empty where there are none (under the real containerd)."""

    namespace: str
    container_id: str
    bundle: str
    address: str
    ttrpc_address: str
    keeper: str
    zygote: str
    socket: str
    debug: bool = False
