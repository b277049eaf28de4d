"""What a name or an id means, what listing filters choose, and the shapes of Docker's JSON, over a store in memory."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, cast

import msgspec
import pytest

from engine.images.catalog import Catalog
from engine.images.containerd import Containerd
from engine.images.listing import Listing, glob
from engine.images.views import Sizes, Views, unix_nanoseconds
from engine.platforms import parse_platform, platform_rank
from oci.errors import InvalidArgument, NotFound
from oci.image import MEDIA_INDEX, Descriptor, Index, Platform
from tests.support.images import MemoryContainerd

BUSYBOX = "docker.io/library/busybox"
AMD64 = Platform("amd64", "linux")


def made() -> tuple[MemoryContainerd, Catalog]:
    store = MemoryContainerd()
    return store, Catalog(cast(Containerd, store), AMD64)


def chosen(catalog: Catalog, filters: dict[str, list[str]], every: bool = False) -> list[str]:
    return [image.id for image in asyncio.run(Listing(catalog).choose(filters, every=every))]


def test_names_ids_and_prefixes_find_an_image() -> None:
    store, catalog = made()
    image_id = store.image(f"{BUSYBOX}:latest", f"{BUSYBOX}:1")
    target = store.records[f"{BUSYBOX}:1"].target.digest
    for text in ("busybox", "busybox:1", f"{BUSYBOX}:latest", image_id, image_id[7:], image_id[7:13], image_id[:15],
                 f"busybox@{target}", target):  # fmt: skip
        assert asyncio.run(catalog.find(text)).id == image_id, text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nosuch", "No such image: nosuch:latest"),
        ("busybox:2", "No such image: busybox:2"),
        ("sha256:" + "0" * 64, "No such image: sha256:" + "0" * 64),
        ("host:5000/x", "No such image: host:5000/x:latest"),
    ],
)
def test_what_is_not_here_is_said_in_dockers_words(text: str, message: str) -> None:
    store, catalog = made()
    store.image(f"{BUSYBOX}:latest")
    with pytest.raises(NotFound) as caught:
        asyncio.run(catalog.find(text))
    assert str(caught.value) == message


def test_no_reference_at_all_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="invalid reference format"):
        asyncio.run(made()[1].find("Upper/Case:::"))


def test_the_manifest_for_this_platform_is_taken_from_an_index() -> None:
    store, catalog = made()
    ours = store.image("x", layers=("ours",))
    manifest = store.records.pop("x").target
    other = Descriptor(manifest.media_type, "sha256:" + "1" * 64, 10, platform=Platform("arm64", "linux"))
    same = msgspec.structs.replace(manifest, platform=AMD64)
    index = store.blob(msgspec.json.encode(Index(manifests=(other, same), media_type=MEDIA_INDEX)), MEDIA_INDEX)
    asyncio.run(store.put(f"{BUSYBOX}:latest", index))
    image = asyncio.run(catalog.find("busybox"))
    assert (image.id, image.decoded.manifest.digest) == (ours, manifest.digest)
    assert image.digests == [f"busybox@{index.digest}"]


def test_an_image_of_another_platform_only_is_listed_too() -> None:
    store, catalog = made()
    foreign = store.image("x", layers=("theirs",))
    manifest = msgspec.structs.replace(store.records.pop("x").target, platform=Platform("arm64", "linux"))
    index = store.blob(msgspec.json.encode(Index(manifests=(manifest,), media_type=MEDIA_INDEX)), MEDIA_INDEX)
    asyncio.run(store.put(f"{BUSYBOX}:latest", index))
    assert asyncio.run(catalog.find("busybox")).id == foreign


def test_filters() -> None:
    store, catalog = made()
    old = store.image(f"{BUSYBOX}:1", layers=("a",), created="2020-01-01T00:00:00Z", labels={"k": "v"})
    new = store.image("docker.io/me/app:2", layers=("a", "b"), created="2024-01-01T00:00:00Z")
    loose = store.image(layers=("c",), created="2022-01-01T00:00:00Z")
    assert chosen(catalog, {}) == [new, loose, old]
    assert chosen(catalog, {"dangling": ["true"]}) == [loose]
    assert chosen(catalog, {"dangling": ["0"]}) == [new, old]
    assert chosen(catalog, {"label": ["k=v"]}) == chosen(catalog, {"label": ["k"]}) == [old]
    assert chosen(catalog, {"before": ["me/app:2"]}) == [loose, old]
    assert chosen(catalog, {"since": ["busybox:1"]}) == [new, loose]
    assert chosen(catalog, {"until": ["2021-01-01"]}) == [old]
    assert chosen(catalog, {"reference": ["busybox"]}) == chosen(catalog, {"reference": ["busy*:1"]}) == [old]
    assert chosen(catalog, {"reference": ["me/*"]}) == [new]
    with pytest.raises(InvalidArgument, match="invalid filter 'color'"):
        chosen(catalog, {"color": ["red"]})
    with pytest.raises(InvalidArgument, match="invalid filter 'dangling"):
        chosen(catalog, {"dangling": ["maybe"]})


def test_untagged_parents_are_listed_only_when_all_are_asked_for() -> None:
    store, catalog = made()
    parent = store.image(layers=("a",))
    child = store.image(f"{BUSYBOX}:1", layers=("a", "b"), parent=parent)
    assert chosen(catalog, {}) == [child]
    assert set(chosen(catalog, {}, every=True)) == {parent, child}


def test_globs_stop_at_slashes() -> None:
    assert glob("a*", "abc")
    assert glob("a/?", "a/b")
    assert not glob("a*", "a/b")


def test_inspect_and_history_have_dockers_shape() -> None:
    store, catalog = made()
    image_id = store.image(f"{BUSYBOX}:1", layers=("a", "b"), labels={"k": "v"})
    containerd = cast(Containerd, store)
    views = Views(containerd, catalog, Sizes(containerd))
    image = asyncio.run(catalog.find("busybox:1"))
    shown: dict[str, Any] = asyncio.run(views.inspect(image, (1, 51)))
    assert shown["Id"] == image_id
    assert shown["Config"] == {"Cmd": ["sh"], "Labels": {"k": "v"}}
    assert (shown["Size"], shown["RepoTags"]) == (200, ["busybox:1"])
    assert "VirtualSize" not in shown
    legacy = asyncio.run(views.inspect(image, (1, 43)))
    assert (legacy["VirtualSize"], legacy["Config"]["Env"], "Descriptor" in legacy) == (200, None, False)
    history = asyncio.run(views.history(image))
    assert [entry["Id"] for entry in history] == [image_id, "<missing>"]
    assert [entry["CreatedBy"] for entry in history] == ["add b", "add a"]
    assert history[0]["Tags"] == ["busybox:1"]


def test_shared_sizes_count_layers_of_others() -> None:
    store, catalog = made()
    one = store.image(f"{BUSYBOX}:1", layers=("a",))
    two = store.image(f"{BUSYBOX}:2", layers=("a", "b"))
    sizes = Sizes(cast(Containerd, store))
    images = asyncio.run(catalog.all())
    assert asyncio.run(sizes.shared(images)) == {one: 100, two: 100}
    assert asyncio.run(sizes.total(images)) == 200


def test_platforms() -> None:
    assert parse_platform("linux/arm64") == Platform("arm64", "linux", variant="v8")
    assert parse_platform("x86_64") == AMD64
    assert platform_rank(Platform("arm64", "linux", variant="v8"), AMD64) == 0
    assert platform_rank(AMD64, AMD64) > platform_rank(None, AMD64) > 0
    with pytest.raises(InvalidArgument):
        parse_platform("a/b/c/d")


def test_times_keep_their_nanoseconds_and_zones() -> None:
    assert unix_nanoseconds("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert unix_nanoseconds("1970-01-01T01:00:00+01:00") == 0
    assert unix_nanoseconds("nonsense") == 0


def test_a_damaged_document_is_not_believed() -> None:
    store, catalog = made()
    store.image(f"{BUSYBOX}:1")
    target = store.records[f"{BUSYBOX}:1"].target
    store.blobs[target.digest] = b"{}"
    assert hashlib.sha256(b"{}").hexdigest() not in target.digest
    assert asyncio.run(catalog.all()) == []
