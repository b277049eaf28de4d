"""Names change hands: tagging, and what happens to the image that loses its last name.

Rule: an image never loses its last name by being replaced; it becomes dangling, under Docker's special name.
"""

from __future__ import annotations

from engine.images.catalog import Catalog
from engine.images.containerd import Containerd
from engine.images.records import Record, dangling_name
from oci.errors import DataLoss, InvalidArgument, NotFound
from oci.image import Descriptor
from oci.reference import OFFICIAL_PREFIX, Reference


def check_name(reference: Reference) -> Reference:
    """``reference`` unless its name is reserved; raises ``InvalidArgument`` as Docker does."""
    if reference.path == f"{OFFICIAL_PREFIX}scratch":
        raise InvalidArgument("'scratch' is a reserved name")
    return reference


class Names:
    """Gives and takes names."""

    def __init__(self, containerd: Containerd, catalog: Catalog) -> None:
        self._containerd = containerd
        self._catalog = catalog

    async def assign(self, reference: Reference, target: Descriptor) -> None:
        """Point ``reference`` at ``target``; an image that loses its last name by that becomes dangling."""
        before = await self.current(reference)
        left = before.target if before is not None and before.target.digest != target.digest else None
        if left is not None:
            # First, or a collection between the two would find the image without any name.
            await self._containerd.put(dangling_name(left.digest), left)
        await self._containerd.put(str(reference), target)
        await self._containerd.remove(dangling_name(target.digest))
        if left is not None:
            await self._release(left)

    async def current(self, reference: Reference) -> Record | None:
        """What ``reference`` points at now."""
        try:
            return await self._containerd.get(str(reference))
        except NotFound:
            return None

    async def settle(self, before: Record | None, target: Descriptor) -> None:
        """After a name went from ``before`` to ``target``: the one may be dangling now, the other no longer is."""
        await self._containerd.remove(dangling_name(target.digest))
        if before is not None and before.target.digest != target.digest:
            await self.keep(before.target)

    async def keep(self, target: Descriptor) -> None:
        """Make ``target`` dangling unless a name leads to its image."""
        await self._containerd.put(dangling_name(target.digest), target)
        await self._release(target)

    async def _release(self, target: Descriptor) -> None:
        """Take the name of a dangling image from ``target`` when its image has another, or is none."""
        held = dangling_name(target.digest)
        try:
            image_id = (await self._catalog.decode(target)).id
            needed = not await self.any_of(image_id, but=held)
        except (NotFound, DataLoss, InvalidArgument):
            needed = False
        if not needed:
            await self._containerd.remove(held)

    async def any_of(self, image_id: str, *, but: str = "") -> bool:
        """Whether some name leads to this image; the one called ``but`` does not count."""
        found = [image.records for image in await self._catalog.all() if image.id == image_id]
        return any(record.name != but for records in found for record in records)
