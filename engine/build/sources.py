"""Base images of builds: found here, or pulled.

Rule: one pull per name and build, however many stages begin with it.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from engine.build.client import Client
from engine.build.options import BuildOptions
from engine.build.progress import StageLog
from engine.build.workshop import Chain
from engine.images.assembly import NewLayer
from engine.images.records import Decoded
from engine.images.service import ImageService
from engine.platforms import parse_platform
from oci import reference as references
from oci.errors import NotFound
from oci.image import ImageConfig, Platform


class Base(NamedTuple):
    """An image to build on."""

    id: str
    config: ImageConfig
    chain: Chain


class BaseImages:
    """Finds base images for one build."""

    def __init__(self, images: ImageService, options: BuildOptions, client: Client) -> None:
        self._images = images
        self._client = client
        self._options = options
        self._found: dict[tuple[str, str], asyncio.Task[Base]] = {}

    async def resolve(self, name: str, platform: str, log: StageLog) -> Base:
        """The image ``name`` for ``platform`` ("" for the build's), unpacked. Raises ``NotFound`` and pull's errors."""
        key = (name, platform)
        if key not in self._found:
            self._found[key] = asyncio.create_task(self._find(name, platform, log))
        return await asyncio.shield(self._found[key])

    async def decoded(self, name: str, log: StageLog) -> Decoded:
        """The image ``name`` as it is, pulled if it is not here. Raises ``NotFound`` and pull's errors."""
        try:
            return (await self._images.catalog.find(name)).decoded
        except NotFound:
            await self._pull(name, self._options.platform, log)
            return (await self._images.catalog.find(name)).decoded

    def close(self) -> None:
        """Give up what is still under way."""
        for task in self._found.values():
            task.cancel()

    async def _find(self, name: str, platform: str, log: StageLog) -> Base:
        wanted = parse_platform(platform) if platform else self._options.platform
        if not self._options.pull:
            try:
                return await self._local(name, wanted)
            except NotFound:
                pass
        await self._pull(name, wanted, log)
        return await self._local(name, wanted)

    async def _local(self, name: str, wanted: Platform | None) -> Base:
        image = await self._images.catalog.find(name)
        decoded = image.decoded
        if wanted is not None:
            decoded = await self._images.catalog.decode(image.records[0].target, wanted)
            config = decoded.config
            if (config.os, config.architecture) != (wanted.os, wanted.architecture):
                raise NotFound(f"No such image: {name} for {wanted.os}/{wanted.architecture}")
        await self._images.unpacker.ensure(decoded)
        return Base(decoded.id, decoded.config, _chain(decoded))

    async def _pull(self, name: str, wanted: Platform | None, log: StageLog) -> None:
        reference = references.parse(name).tagged()
        credentials = await self._client.credentials(reference.host)
        async for message in self._images.transfers.pull(reference, credentials, wanted):
            log.say(message)


def _chain(decoded: Decoded) -> Chain:
    pairs = zip(decoded.layers, decoded.config.rootfs.diff_ids, strict=True)
    return Chain.of(tuple(NewLayer(blob, diff_id) for blob, diff_id in pairs))
