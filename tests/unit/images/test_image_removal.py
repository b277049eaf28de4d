"""Docker's rules for untagging and deleting, with containers, children and several names in the way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from engine.backend import Backend
from engine.images.catalog import Catalog
from engine.images.containerd import Containerd
from engine.images.names import Names, check_name
from engine.images.removal import Remover
from oci import reference as references
from oci.errors import FailedPrecondition, InvalidArgument
from oci.image import MEDIA_MANIFEST, Descriptor, Manifest, Platform
from protos.containerd import leases_pb2
from tests.support.images import MemoryContainerd

BUSYBOX = "docker.io/library/busybox"
CONTAINER = "c" * 64


class House:
    """A store, its remover, and containers that use images."""

    def __init__(self, store: MemoryContainerd | None = None) -> None:
        self.store = store or MemoryContainerd()
        self.users: dict[str, list[tuple[str, bool]]] = {}
        self.told: list[str] = []
        containerd = cast(Containerd, self.store)
        self.catalog = Catalog(containerd, Platform("amd64", "linux"))
        self.names = Names(containerd, self.catalog)
        self.remover = Remover(containerd, self.catalog, self, lambda image, action, name: self.told.append(action))

    def users_of_image(self, image_id: str) -> list[tuple[str, bool]]:
        return self.users.get(image_id, [])

    def remove(self, text: str, *, force: bool = False, prune: bool = True) -> list[dict[str, str]]:
        return asyncio.run(self.remover.remove(text, force=force, prune=prune))

    def refused(self, text: str, *, force: bool = False) -> str:
        before = dict(self.store.records)
        with pytest.raises(FailedPrecondition) as caught:
            self.remove(text, force=force)
        assert self.store.records == before, "a refusal changed something"
        return str(caught.value)


def test_the_last_name_takes_the_image_and_its_layers() -> None:
    house = House()
    image_id = house.store.image(f"{BUSYBOX}:1", layers=("a", "b"))
    house.store.image(f"{BUSYBOX}:2", layers=("a",))
    done = house.remove("busybox:1")
    assert done[:2] == [{"Untagged": "busybox:1"}, {"Deleted": image_id}]
    assert len(done) == 3, "only the layer that nothing else has"
    assert list(house.store.records) == [f"{BUSYBOX}:2"]
    assert house.told == ["untag", "delete"]


def test_one_of_two_names_is_only_untagged() -> None:
    house = House()
    image_id = house.store.image(f"{BUSYBOX}:1", f"{BUSYBOX}:2")
    house.users[image_id] = [(CONTAINER, True)]
    assert house.remove("busybox:1") == [{"Untagged": "busybox:1"}]


def test_by_id_all_names_of_one_image_need_force() -> None:
    house = House()
    image_id = house.store.image(f"{BUSYBOX}:1", f"{BUSYBOX}:2")
    short = image_id[7:19]
    assert house.refused(short) == (
        f"conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
    )
    done = house.remove(short, force=True)
    assert done[:3] == [{"Untagged": "busybox:1"}, {"Untagged": "busybox:2"}, {"Deleted": image_id}]
    assert house.store.records == {}


@pytest.mark.parametrize(("running", "word", "how"), [(True, "running", "cannot be"), (False, "stopped", "must be")])
def test_containers_stand_in_the_way(running: bool, word: str, how: str) -> None:
    house = House()
    image_id = house.store.image(f"{BUSYBOX}:1")
    house.users[image_id] = [(CONTAINER, running)]
    short = image_id[7:19]
    assert house.refused("busybox:1") == (
        'conflict: unable to remove repository reference "busybox:1" (must force) - container '
        f"{CONTAINER[:12]} is using its referenced image {short}"
    )
    assert house.refused(short) == (
        f"conflict: unable to delete {short} ({how} forced) - image is being used by {word} container {CONTAINER[:12]}"
    )


def test_forced_off_a_running_container_the_image_stays_without_a_name() -> None:
    house = House()
    image_id = house.store.image(f"{BUSYBOX}:1")
    target = house.store.records[f"{BUSYBOX}:1"].target.digest
    house.users[image_id] = [(CONTAINER, True)]
    assert house.remove("busybox:1", force=True) == [{"Untagged": "busybox:1"}]
    assert list(house.store.records) == [f"moby-dangling@{target}"]
    assert "cannot be forced" in house.refused(image_id, force=True)


def test_children_protect_their_parent_and_untagged_parents_go_with_the_last_child() -> None:
    house = House()
    parent = house.store.image(layers=("a",))
    child = house.store.image(f"{BUSYBOX}:1", layers=("a", "b"), parent=parent)
    assert "image has dependent child images" in house.refused(parent, force=True)
    assert {"Deleted": parent} in house.remove("busybox:1")
    assert house.store.records == {}
    assert child != parent


def test_noprune_keeps_the_parent() -> None:
    house = House()
    parent = house.store.image(layers=("a",))
    house.store.image(f"{BUSYBOX}:1", layers=("a", "b"), parent=parent)
    assert {"Deleted": parent} not in house.remove("busybox:1", prune=False)


def test_digest_references_go_with_the_last_tag() -> None:
    house = House()
    house.store.image(f"{BUSYBOX}:1")
    target = house.store.records[f"{BUSYBOX}:1"].target
    asyncio.run(house.store.put(f"{BUSYBOX}@{target.digest}", target))
    done = house.remove("busybox:1")
    assert [entry for entry in done if "Untagged" in entry] == [
        {"Untagged": "busybox:1"},
        {"Untagged": f"busybox@{target.digest}"},
    ]
    assert house.store.records == {}


def test_a_name_that_moves_leaves_its_image_dangling_and_comes_back() -> None:
    house = House()
    first = house.store.image(f"{BUSYBOX}:1", layers=("a",))
    house.store.image(f"{BUSYBOX}:2", layers=("b",))
    old, new = (house.store.records[f"{BUSYBOX}:{n}"].target for n in (1, 2))
    name = references.parse("busybox:1")
    asyncio.run(house.names.assign(name, new))
    dangling = f"moby-dangling@{old.digest}"
    assert dangling in house.store.records
    assert asyncio.run(house.catalog.find(first)).dangling
    asyncio.run(house.names.assign(name, old))
    assert dangling not in house.store.records


class Collected(MemoryContainerd):
    """A store that is collected after each change of a name."""

    async def put(self, name: str, target: Descriptor, labels: dict[str, str] | None = None) -> None:
        await super().put(name, target, labels)
        self._collect()

    async def remove(self, name: str, *, sync: bool = False) -> None:
        await super().remove(name, sync=sync)
        self._collect()

    def _collect(self) -> None:
        manifests = {record.target.digest for record in self.records.values()}
        found = [msgspec.json.decode(self.blobs[digest], type=Manifest) for digest in manifests]
        kept = manifests | {blob.digest for one in found for blob in (one.config, *one.layers)}
        self.blobs = {digest: data for digest, data in self.blobs.items() if digest in kept}


def test_a_collection_while_a_name_moves_spares_the_image_it_leaves() -> None:
    house = House(Collected())
    first = house.store.image(f"{BUSYBOX}:1", layers=("a",))
    second = house.store.image(f"{BUSYBOX}:2", layers=("b",))
    old, new = (house.store.records[f"{BUSYBOX}:{n}"].target for n in (1, 2))
    asyncio.run(house.names.assign(references.parse("busybox:1"), new))
    assert asyncio.run(house.catalog.find(first)).dangling
    assert set(house.store.records) == {f"{BUSYBOX}:1", f"{BUSYBOX}:2", f"moby-dangling@{old.digest}"}
    asyncio.run(house.names.assign(references.parse("busybox:2"), old))
    assert set(house.store.records) == {f"{BUSYBOX}:1", f"{BUSYBOX}:2"}, "both have a name"
    assert not asyncio.run(house.catalog.find(second)).dangling


class Leases:
    """containerd's service of leases, as far as ``leased`` uses it."""

    def __init__(self) -> None:
        self.kept: dict[str, set[str]] = {}

    async def Create(self, request: leases_pb2.CreateRequest) -> None:
        self.kept[request.id] = set()

    async def AddResource(self, request: leases_pb2.AddResourceRequest) -> None:
        assert request.resource.type == "content"
        self.kept[request.id].add(request.resource.id)

    async def Delete(self, request: leases_pb2.DeleteRequest) -> None:
        del self.kept[request.id]


def test_a_lease_keeps_what_a_name_may_leave_until_it_ends() -> None:
    leases = Leases()
    backend = SimpleNamespace(leases=leases, with_lease=lambda lease: lease)
    blobs = [Descriptor(MEDIA_MANIFEST, digest, 1) for digest in ("sha256:a", "sha256:b", "sha256:a")]

    async def scenario() -> None:
        async with Containerd(cast(Backend, backend)).leased(*blobs) as lease:
            assert leases.kept == {cast(str, lease): {"sha256:a", "sha256:b"}}
        assert leases.kept == {}

    asyncio.run(scenario())


def test_scratch_is_no_name() -> None:
    with pytest.raises(InvalidArgument, match="'scratch' is a reserved name"):
        check_name(references.parse("scratch"))
