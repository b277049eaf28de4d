"""The unpacker: in order and apart give the same trees, layers are unpacked once, wrong ones leave nothing."""

from __future__ import annotations

import asyncio
import gzip
import random
import tarfile
from collections.abc import Sequence

import pytest

from containerd_py.interfaces import GC_REF_SNAPSHOT
from containerd_py.unpack import Layer
from oci import digest
from oci.errors import DataLoss, NotFound
from oci.image import MEDIA_LAYER_GZIP, Descriptor
from tests.integration.diff.conftest import SCOPE, Seen, Stores, folder, layer, member, tree
from tests.integration.snapshots.conftest import in_mounts

BASE = layer(
    folder("./"), folder("etc"), member("etc/a", b"a"), folder("var"), folder("var/lib"), member("var/lib/x", b"x")
)


def layers_of(stores: Stores, archives: Sequence[bytes]) -> list[Layer]:
    return [Layer(stores.add(data), digest.of_bytes(data)) for data in archives]


def unpacked(stores: Stores, archives: Sequence[bytes], snapshotter: str, backwards: bool = False) -> dict[str, Seen]:
    """The tree of an image; ``backwards`` lets the layers' blobs arrive last one first."""

    async def work() -> str:
        gates = [asyncio.Event() for _ in archives]
        layers = [
            entry._replace(ready=gate.wait()) for entry, gate in zip(layers_of(stores, archives), gates, strict=True)
        ]
        running = asyncio.create_task(stores.unpacker.unpack(SCOPE, "", layers, snapshotter))
        for gate in reversed(gates) if backwards else gates:
            gate.set()
            await asyncio.sleep(0.03 if backwards else 0)
        return await running

    chain = stores.run(work)
    target = stores.snapshotters[snapshotter]
    return in_mounts(target.view(SCOPE, f"view-{backwards}-{chain}", chain), tree)


def same(stores: Stores, archives: Sequence[bytes]) -> dict[str, Seen]:
    """The tree, after it was found equal unpacked by copying in order and apart on overlay."""
    copied = unpacked(stores, archives, "native")
    stacked = unpacked(stores, archives, "overlayfs", backwards=True)
    assert stacked == copied
    return stacked


@pytest.mark.parametrize(
    "upper",
    [
        layer(folder("etc"), member("etc/.wh.a"), member("etc/b", b"b")),
        layer(folder("etc"), member("etc/.wh..wh..opq"), member("etc/b", b"b")),
        layer(folder("etc"), member("etc/b", b"b"), member("etc/.wh..wh..opq")),
        layer(folder("etc"), member("etc/.wh.nothing"), folder("new"), member("new/.wh.nothing")),
        layer(member(".wh.var"), folder("var"), member("var/new", b"n")),
        layer(member("var", b"a file now")),
        layer(member("var", b"a file"), folder("var"), member("var/new", b"n")),
        layer(member("etc/late", b"no entry for etc")),
        layer(folder("etc", mode=0o700, uid=5), member("etc/link", type=tarfile.LNKTYPE, linkname="etc/a")),
        layer(folder("etc"), member("etc/a", b"new"), member("etc/link", type=tarfile.LNKTYPE, linkname="etc/a")),
        layer(member("lib", type=tarfile.SYMTYPE, linkname="var/lib"), member("lib/y", b"through the link")),
        layer(member(".wh..wh..opq"), member("only", b"1")),
        layer(folder("etc"), member("etc/.wh.a"), folder("etc/a"), member("etc/a/deep", b"d")),
        layer(folder("etc", pax_headers={"SCHILY.xattr.user.k": "v"}), folder("./", mode=0o700)),
        layer(folder("etc"), member("etc/.wh.a"), member("etc/l", type=tarfile.LNKTYPE, linkname="var/lib/x")),
    ],
)
def test_apart_is_as_in_order(stores: Stores, upper: bytes) -> None:
    third = layer(folder("etc"), member("etc/c", b"c", uid=1000, mode=0o4755), folder("var"), folder("var/lib"))
    same(stores, [BASE, upper, third])


@pytest.mark.parametrize("seed", range(12))
def test_random_layers_apart_are_as_in_order(stores: Stores, seed: int) -> None:
    generator = random.Random(seed)
    same(stores, [BASE, *(random_layer(generator) for _ in range(3))])


def random_layer(generator: random.Random) -> bytes:
    """Few names, so that layers meet: files, folders, links, whiteouts, opaque markers, in any order."""
    known = ["etc", "var", "var/lib", "d", "d/e"]
    members = [folder(name, mode=generator.choice([0o755, 0o700])) for name in known if generator.random() < 0.93]
    for _ in range(generator.randint(1, 8)):
        parent = generator.choice(known)
        name = f"{parent}/{generator.choice(['a', 'x', 'n'])}"
        base = name.rpartition("/")[2]
        kind = generator.choice(["file", "file", "folder", "white", "opaque", "symlink"])
        members.append(
            {
                "file": member(name, name.encode(), mtime=generator.randint(0, 9**9)),
                "folder": folder(name),
                "white": member(f"{parent}/.wh.{base}"),
                "opaque": member(f"{parent}/.wh..wh..opq"),
                "symlink": member(name, type=tarfile.SYMTYPE, linkname="a"),
            }[kind]
        )
    return layer(*members)


def test_an_image_is_labelled_held_and_unpacked_once(stores: Stores) -> None:
    packed = gzip.compress(BASE)
    blob = stores.add(packed, MEDIA_LAYER_GZIP)
    config = stores.add(b"{}")
    told: list[str] = []

    async def work() -> list[str]:
        one = [Layer(blob, digest.of_bytes(BASE))]

        def note(_blob: object, state: str, _done: object) -> None:
            told.append(state)

        return await asyncio.gather(
            *(stores.unpacker.unpack(SCOPE, config.digest, one, progress=note) for _ in range(3))
        )

    chains = stores.run(work)
    assert set(chains) == {digest.of_bytes(BASE)}
    assert (told.count("extracted"), told.count("exists")) == (1, 2)
    assert stores.content.info(SCOPE, config.digest).labels == {f"{GC_REF_SNAPSHOT}overlayfs": chains[0]}
    labels = stores.content.info(SCOPE, blob.digest).labels
    assert labels == {"containerd.io/uncompressed": digest.of_bytes(BASE)}


def test_a_layer_that_is_not_what_the_config_says_leaves_nothing(stores: Stores) -> None:
    good, bad = layers_of(stores, [BASE, layer(folder("x"))])

    async def work() -> None:
        await stores.unpacker.unpack(SCOPE, "", [good, bad._replace(diff_id=digest.of_bytes(b"other"))])

    with pytest.raises(DataLoss):
        stores.run(work)
    target = stores.snapshotters["overlayfs"]
    assert [info.name for info in target.walk(SCOPE)] in ([], [good.diff_id])
    target.cleanup()


def test_a_download_that_fails_ends_the_unpacking_with_its_error(stores: Stores) -> None:
    async def lost() -> None:
        raise NotFound("blob is gone")

    async def work() -> None:
        first, second = layers_of(stores, [BASE, layer(folder("x"))])
        await stores.unpacker.unpack(SCOPE, "", [first._replace(ready=lost()), second])

    with pytest.raises(NotFound, match="blob is gone"):
        stores.run(work)
    assert stores.snapshotters["overlayfs"].walk(SCOPE) == []


def test_cancelling_leaves_nothing_and_another_try_succeeds(stores: Stores) -> None:
    big = layer(folder("d"), *(member(f"d/{n}", b"x" * 20_000) for n in range(3000)))
    entry = Layer(stores.add(big), digest.of_bytes(big))

    async def work() -> str:
        running = asyncio.create_task(stores.unpacker.unpack(SCOPE, "", [entry]))
        await asyncio.sleep(0.15)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert stores.snapshotters["overlayfs"].walk(SCOPE) == []
        return await stores.unpacker.unpack(SCOPE, "", [entry])

    assert stores.run(work) == digest.of_bytes(big)
    stores.snapshotters["overlayfs"].cleanup()
    assert len(list((stores.root / "io.containerd.snapshotter.v1.overlayfs/snapshots").iterdir())) == 1


def test_an_image_without_layers_has_no_snapshot(stores: Stores) -> None:
    async def work() -> str:
        return await stores.unpacker.unpack(SCOPE, "", [])

    assert stores.run(work) == ""


def test_unknown_media_types_are_refused(stores: Stores) -> None:
    blob = stores.add(BASE)
    strange = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", blob.digest, blob.size)

    async def work() -> str:
        return await stores.unpacker.unpack(SCOPE, "", [Layer(strange, digest.of_bytes(BASE))])

    with pytest.raises(Exception, match="encrypted"):
        stores.run(work)
