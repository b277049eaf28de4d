"""``DELETE /images/{name}``: Docker's rules for untagging and deleting.

Rule: what is refused is refused before anything changes. An image goes with its last name; containers, children and
other names stand in its way as in Docker: "hard" conflicts always, "soft" ones unless forced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from engine.images.catalog import Catalog, is_id_prefix, names
from engine.images.containerd import Containerd
from engine.images.records import Image, Record, dangling_name, short_id
from engine.interfaces import ContainerUse
from oci import digest as digests
from oci import reference as references
from oci.errors import FailedPrecondition
from oci.reference import Reference

Deleted = list[dict[str, str]]
Tell = Callable[[Image | None, str, str], None]
"""``tell(image, action, name)``: publish an image event; without an image its actor is ``name``."""


class Remover:
    """Removes names and images."""

    def __init__(self, containerd: Containerd, catalog: Catalog, users: ContainerUse, tell: Tell) -> None:
        self._containerd = containerd
        self._catalog = catalog
        self._users = users
        self._tell = tell

    async def remove(self, text: str, *, force: bool = False, prune: bool = True) -> Deleted:
        """Untag or delete what ``text`` means; Docker's list of ``Untagged`` and ``Deleted``."""
        image = await self._catalog.find(text)
        done: Deleted = []
        if is_id_prefix(image.id, text):
            names_count = not single_repository(image.references)
            _refuse(image, await self.conflict(image, force=force, names_count=names_count))
            await self.delete(image, done, prune=prune)
            return done
        reference = references.parse(text).tagged()
        self._refuse_last_name(image, reference, force)
        gone, left = _split(image, reference)
        if not any(record.reference for record in left):
            if await self.conflict(image, force=force, names_count=False) is None:
                await self.delete(image, done, prune=prune)
                return done
            target = gone[0].target
            await self._containerd.put(dangling_name(target.digest), target)
        await self._untag(image, gone, done)
        return done

    def _refuse_last_name(self, image: Image, reference: Reference, force: bool) -> None:
        users = self._users.users_of_image(image.id)
        if users and not force and single_repository(image.references):
            raise FailedPrecondition(
                f'conflict: unable to remove repository reference "{reference.familiar}" (must force) - container '
                f"{users[0][0][:12]} is using its referenced image {short_id(image.id)}"
            )

    async def conflict(self, image: Image, *, force: bool, names_count: bool) -> tuple[str, bool] | None:
        """What forbids deleting ``image``: (why, whether force cannot help), or None."""
        if any(other.decoded.parent == image.id for other in await self._catalog.all()):
            return "image has dependent child images", True
        users = self._users.users_of_image(image.id)
        running = [container for container, runs in users if runs]
        if running:
            return f"image is being used by running container {running[0][:12]}", True
        if force:
            return None
        if names_count and image.references:
            return "image is referenced in multiple repositories", False
        if users:
            return f"image is being used by stopped container {users[0][0][:12]}", False
        return None

    async def _untag(self, image: Image, records: Iterable[Record], done: Deleted) -> None:
        for record in records:
            await self._containerd.remove(record.name)
            if record.reference is not None:
                done.append({"Untagged": record.reference.familiar})
                self._tell(image, "untag", image.id)

    async def delete(self, image: Image, done: Deleted, *, prune: bool) -> None:
        """Remove every name of ``image``, and what only it kept; ``done`` gets what was removed."""
        # A last name that is removed "sync" takes its blobs and snapshots with it before we answer.
        *records, last = (*(r for r in image.records if r.dangling), *(r for r in image.records if not r.dangling))
        await self._untag(image, records, done)
        await self._containerd.remove(last.name, sync=True)
        if last.reference is not None:
            done.append({"Untagged": last.reference.familiar})
            self._tell(image, "untag", image.id)
        self._catalog.forget()
        self._tell(image, "delete", image.id)
        done.append({"Deleted": image.id})
        others = await self._catalog.all()
        kept = {chain for other in others for chain in digests.chain_ids(other.decoded.config.rootfs.diff_ids)}
        chain = digests.chain_ids(image.decoded.config.rootfs.diff_ids)
        done.extend({"Deleted": layer} for layer in reversed(chain) if layer not in kept)
        for parent in others:
            orphan = prune and parent.id == image.decoded.parent and parent.dangling
            if orphan and await self.conflict(parent, force=False, names_count=True) is None:
                await self.delete(parent, done, prune=True)


def _split(image: Image, reference: Reference) -> tuple[list[Record], list[Record]]:
    """(records that ``reference`` removes, records that stay): digests go with the last tag of their repository."""
    gone = [record for record in image.records if names(record, reference)]
    left = [record for record in image.records if record not in gone]
    if not any(r.reference and r.reference.name == reference.name and r.reference.tag for r in left):
        gone += [r for r in left if r.reference and r.reference.name == reference.name]
        left = [record for record in left if record not in gone]
    return gone, left


def _refuse(image: Image, conflict: tuple[str, bool] | None) -> None:
    if conflict is not None:
        why, hard = conflict
        how = "cannot be forced" if hard else "must be forced"
        raise FailedPrecondition(f"conflict: unable to delete {short_id(image.id)} ({how}) - {why}")


def single_repository(every: tuple[Reference, ...]) -> bool:
    """Whether at most one tag leads to the image, and all digest references are of its repository."""
    if len(every) <= 1:
        return True
    tags = [r for r in every if not r.digest]
    if len(tags) > 1:
        return False
    return {r.name for r in every if r.digest} == {(tags or list(every))[0].name}
