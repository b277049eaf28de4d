"""What a build is asked for, whoever asks: the classic endpoint, the command line, or a newer front end.

Rule: plain values, checked; no HTTP in here.
"""

from __future__ import annotations

import msgspec

from engine.containers.config import HostConfig
from engine.images.credentials import Credentials
from oci.image import Platform
from oci.reference import Reference


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``host`` carries limits and such for RUN; ``secrets`` by id. ``epoch`` is ``SOURCE_DATE_EPOCH`` (seconds).

    ``allowed``: what of ``network.host`` and ``security.insecure`` a Dockerfile may ask for.
    ``only_cache_from``: with ``cache_from`` nothing else is taken from the cache, as the classic builder has it.
    """

    dockerfile: str = "Dockerfile"
    tags: tuple[Reference, ...] = ()
    target: str = ""
    build_args: dict[str, str] = {}
    labels: dict[str, str] = {}
    platform: Platform | None = None
    no_cache: bool = False
    no_cache_stages: tuple[str, ...] = ()
    pull: bool = False
    network: str = ""
    host: HostConfig = HostConfig()
    secrets: dict[str, bytes] = {}
    credentials: dict[str, Credentials] = {}
    cache_from: tuple[str, ...] = ()
    only_cache_from: bool = False
    squash: bool = False
    allowed: frozenset[str] = frozenset()

    @property
    def epoch(self) -> int | None:
        """``SOURCE_DATE_EPOCH`` where it was given as a number."""
        text = self.build_args.get("SOURCE_DATE_EPOCH", "")
        return int(text) if text.isdigit() else None
