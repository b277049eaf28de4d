"""``docker import``: a tar of a root file system becomes an image of one layer.

Rule: what the tar holds is applied as any layer is, so a damaged one fails before the image has a name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from engine.images.assembly import Assembler, timestamp
from engine.images.changes import apply_changes
from engine.images.containerd import Containerd
from engine.images.records import Decoded
from oci.image import ExecutionConfig, History, ImageConfig, Platform, RootFS
from oci.reference import Reference


class Importer:
    """Makes images from plain archives."""

    def __init__(self, containerd: Containerd, assembler: Assembler, platform: Platform) -> None:
        self._containerd = containerd
        self._assembler = assembler
        self._platform = platform

    async def import_archive(
        self,
        pieces: AsyncIterator[bytes],
        reference: Reference | None,
        message: str,
        changes: list[str],
        *,
        created: str = "",
        platform: Platform | None = None,
    ) -> Decoded:
        """Store, unpack and name; ``created`` fixes the image's time for reproducible images."""
        config = apply_changes(ExecutionConfig(), changes)
        platform = platform or self._platform
        async with self._containerd.leased() as metadata:
            layer = await self._assembler.store_layer(pieces, metadata)
            moment = created or timestamp()
            image = ImageConfig(
                architecture=platform.architecture,
                os=platform.os,
                variant=platform.variant if platform.architecture != "arm64" else "",
                created=moment,
                config=config,
                rootfs=RootFS((layer.diff_id,)),
                history=(History(created=moment, comment=message),),
            )
            return await self._assembler.finish(image, (layer.blob,), metadata, reference)
