"""Names change hands: tagging, and what happens to the image that loses its last name.

Rule: an image never loses its last name by being replaced; it becomes dangling, under Docker's special name.
"""

from __future__ import annotations

from engine.images.catalog import Catalog
from engine.images.containerd import Containerd
from engine.images.records import Record, dangling_name
from oci.errors import GantryError, InvalidArgument, NotFound
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
        await self._containerd.put(str(reference), target)
        await self.settle(before, target)

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

    async def keep(self, target: Descriptor) -> bool:
        """Make ``target`` dangling unless a name leads to its image; whether it was done."""
        try:
            image_id = (await self._catalog.decode(target)).id
        except GantryError:
            return False
        if await self.any_of(image_id):
            return False
        await self._containerd.put(dangling_name(target.digest), target)
        return True

    async def any_of(self, image_id: str) -> bool:
        """Whether some name leads to this image."""
        return any(image.id == image_id for image in await self._catalog.all())
