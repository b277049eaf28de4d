"""What transfers are told and what they tell: progress events, where an image goes, which stores there are.

Rule: everything here is plain values; the wire's messages are made and read in ``services.transfer`` only. The events
are those of docs/internals.md, section "Transfers".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from containerd_py.interfaces import ContentStore, ImageStore, LeaseStore, Scope
from containerd_py.unpack import Layer
from oci.image import Descriptor, Platform


class Event(NamedTuple):
    """One progress event. ``progress`` and ``total`` in bytes (``retrying``: seconds)."""

    event: str
    name: str
    progress: int = 0
    total: int = 0
    blob: Descriptor | None = None


Report = Callable[[Event], None]
"""Told every event; must not block."""


class Unpack(NamedTuple):
    """Have a snapshot of the image for ``platform`` (None: this machine's), in ``snapshotter`` ("": the default)."""

    platform: Platform | None = None
    snapshotter: str = ""


class ExtraName(NamedTuple):
    """A further name for what is stored, or with ``prefix`` how archives' names are turned into ours."""

    name: str
    prefix: bool = False
    overwrite: bool = False
    add_digest: bool = False
    skip_named_digest: bool = False


class Destination(NamedTuple):
    """The image store's end of a transfer. No ``platforms`` means all of them."""

    name: str = ""
    labels: Mapping[str, str] = {}
    platforms: Sequence[Platform] = ()
    unpacks: Sequence[Unpack] = ()
    extra: Sequence[ExtraName] = ()


class Unpacker(Protocol):
    """The part of ``containerd_py.unpack.Unpacker`` that transfers use."""

    async def unpack(
        self,
        scope: Scope,
        config: str,
        layers: Sequence[Layer],
        snapshotter: str = "",
        progress: Callable[[Descriptor, str, int], None] = ...,
    ) -> str: ...


class Stores(NamedTuple):
    """The rooms of the daemon that transfers write to. ``flushed``: what was written is on disk when it returns."""

    content: ContentStore
    images: ImageStore
    leases: LeaseStore
    unpacker: Unpacker | None
    flushed: Callable[[], Awaitable[None]]
