"""What a layer carries: changes written as a layer and applied again give the same tree, by every way of comparing."""

from __future__ import annotations

import gzip
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from containerd_py.diff.pool import Changes
from containerd_py.interfaces import Mount
from containerd_py.services.diff import write_layer
from containerd_py.snapshots.base import DirectorySnapshotter
from oci import digest
from oci.errors import Internal, Unimplemented
from oci.image import MEDIA_LAYER, MEDIA_LAYER_GZIP, MEDIA_LAYER_ZSTD, Descriptor
from tests.integration.diff.conftest import SCOPE, Stores, tree
from tests.integration.snapshots.conftest import in_mounts

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep (capability.h)


def fill(root: Path) -> None:
    """A base with what later changes meet."""
    for name in ("keep", "gone/deep", "hidden/old", "replaced"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "turned").mkdir()
    (root / "turned/inside").touch()


def change(root: Path) -> None:
    """One of everything a file system holds, and removals."""
    (root / "gone/deep").unlink()
    (root / "gone").rmdir()
    (root / "hidden/old").unlink()
    (root / "hidden").rmdir()
    (root / "hidden").mkdir(0o700)
    (root / "hidden/new").write_text("new")
    (root / "turned/inside").unlink()
    (root / "turned").rmdir()
    (root / "turned").write_text("a file")
    (root / "replaced").unlink()
    (root / "replaced").mkdir()
    (root / "replaced/within").write_text("x")
    special(root)


def special(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d/suid").write_bytes(b"\x7fELF" * 1000)
    os.chown(root / "d/suid", 1234, 70000)
    os.chmod(root / "d/suid", 0o6755)
    (root / "d/capable").write_bytes(b"x")
    os.setxattr(root / "d/capable", "security.capability", CAPABILITY)
    os.setxattr(root / "d/capable", "user.binary", b"a\0=\n\xff\xfe")
    os.link(root / "d/suid", root / "d/twin")
    os.symlink("../../../etc/passwd", root / "d/link")
    os.lchown(root / "d/link", 5, 6)
    os.mknod(root / "d/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "d/disk", stat.S_IFBLK | 0o660, os.makedev(259, 1_000))
    os.mkfifo(root / "d/pipe", 0o622)
    (root / ("d/" + "long" * 60)).mkdir()
    (root / ("d/" + "long" * 60) / ("name" * 60)).write_text("deep")
    (root / "d/gräßlich ☃").write_text("unicode")
    Path(os.fsdecode(os.fsencode(root / "d") + b"/\xff\xfe")).write_text("bytes")
    (root / "d/empty").touch()
    for name, time in (
        ("suid", 1_500_000_000_123_456_789),
        ("empty", -5_000_000_000),
        ("link", 1_400_000_000_999_999_999),
    ):
        os.utime(root / "d" / name, ns=(0, time), follow_symlinks=False)
    os.chmod(root / "d", 0o1777)
    os.setxattr(root / "d", "user.folder", b"1")
    os.utime(root / "d", ns=(0, 1_300_000_000_000_000_001))


def make(
    stores: Stores, left: Sequence[Mount], right: Sequence[Mount], media: str = "", epoch: int | None = None
) -> Descriptor:
    async def work() -> Descriptor:
        return await write_layer(
            stores.content, stores.workers, SCOPE, Changes(left, right), media_type=media, epoch=epoch
        )

    return stores.run(work)


def apply(stores: Stores, mounts: Sequence[Mount], blob: Descriptor) -> str:
    async def work() -> str:
        with stores.content.open(SCOPE, blob.digest) as opened:
            return (await stores.workers.apply(mounts, opened.fd, sync=True)).digest

    return stores.run(work)


def changed_base(snapshotter: DirectorySnapshotter) -> list[Mount]:
    """The mounts of a snapshot with changes upon the committed ``base``."""
    in_mounts(snapshotter.prepare(SCOPE, "a"), fill)
    snapshotter.commit(SCOPE, "base", "a")
    changed = snapshotter.prepare(SCOPE, "changed", "base")
    in_mounts(changed, change)
    return changed


@pytest.mark.parametrize("kind", ["overlayfs", "native"])
@pytest.mark.parametrize("media", [MEDIA_LAYER, MEDIA_LAYER_GZIP, MEDIA_LAYER_ZSTD])
def test_changes_survive_diff_and_apply(stores: Stores, kind: str, media: str) -> None:
    target = stores.snapshotters[kind]
    changed = changed_base(target)

    blob = make(stores, target.view(SCOPE, "below", "base"), changed, media)
    again = target.prepare(SCOPE, "again", "base")
    diff_id = apply(stores, again, blob)

    assert in_mounts(again, tree) == in_mounts(changed, tree)
    assert stores.content.info(SCOPE, blob.digest).labels == {"containerd.io/uncompressed": diff_id}
    assert blob.media_type == media


def test_the_fast_way_and_the_comparison_write_the_same_tree(stores: Stores) -> None:
    overlay = stores.snapshotters["overlayfs"]
    changed = changed_base(overlay)
    below = overlay.view(SCOPE, "below", "base")
    trees = []
    for number, right in enumerate((changed, _as_other(changed))):
        blob = make(stores, below, right)
        again = overlay.prepare(SCOPE, f"again{number}", "base")
        apply(stores, again, blob)
        trees.append(in_mounts(again, tree))
    assert trees[0] == trees[1]


def _as_other(mounts: Sequence[Mount]) -> list[Mount]:
    """The same file system with a mount more, so that the fast way does not know it for an overlay's changes."""
    return [*mounts, Mount("bind", str(Path(mounts[0].options[-1].partition("=")[2]) / "keep"), "keep", ("bind", "ro"))]


def test_equal_trees_give_equal_bytes_and_epoch_caps_times(stores: Stores) -> None:
    overlay = stores.snapshotters["overlayfs"]
    blobs = []
    for name in ("one", "two"):
        mounts = overlay.prepare(SCOPE, name)
        in_mounts(mounts, fill)
        blobs.append(make(stores, overlay.view(SCOPE, f"{name}-below"), mounts, MEDIA_LAYER, epoch=1_000_000_000))
    assert blobs[0].digest == blobs[1].digest
    fresh = overlay.prepare(SCOPE, "fresh")
    apply(stores, fresh, blobs[0])
    assert in_mounts(fresh, lambda root: (root / "keep").stat().st_mtime_ns) == 1_000_000_000 * 10**9


def test_an_empty_layer_is_a_layer(stores: Stores) -> None:
    overlay = stores.snapshotters["overlayfs"]
    blob = make(stores, overlay.view(SCOPE, "a"), overlay.prepare(SCOPE, "b"))
    plain = gzip.decompress(stores.content.read(SCOPE, blob.digest))
    assert plain.strip(b"\0") == b""
    labels = stores.content.info(SCOPE, blob.digest).labels
    assert labels["containerd.io/uncompressed"] == digest.of_bytes(plain)


def test_unknown_media_types_are_not_written(stores: Stores) -> None:
    overlay = stores.snapshotters["overlayfs"]
    with pytest.raises(Unimplemented, match="text/plain"):
        make(stores, overlay.view(SCOPE, "a"), overlay.prepare(SCOPE, "b"), "text/plain")


def test_a_link_in_the_older_tree_is_not_followed_by_the_comparison(stores: Stores) -> None:
    native = stores.snapshotters["native"]
    in_mounts(native.prepare(SCOPE, "a"), lambda root: os.symlink("/etc", root / "s"))
    native.commit(SCOPE, "base", "a")
    changed = native.prepare(SCOPE, "changed", "base")

    def swap(root: Path) -> None:
        (root / "s").unlink()
        (root / "s/ssl").mkdir(parents=True)

    in_mounts(changed, swap)
    blob = make(stores, native.view(SCOPE, "v", "base"), changed, MEDIA_LAYER)
    assert b".wh." not in stores.content.read(SCOPE, blob.digest)


def test_changes_are_applied_while_they_are_written(stores: Stores) -> None:
    overlay = stores.snapshotters["overlayfs"]
    changed = changed_base(overlay)
    in_mounts(changed, lambda root: (root / "long").write_bytes(os.urandom(5 << 20)))  # more than one piece
    below = overlay.view(SCOPE, "below", "base")
    twin, again = overlay.prepare(SCOPE, "twin", "base"), overlay.prepare(SCOPE, "again", "base")

    blob = stores.run(lambda: written(stores, Changes(below, changed, twin)))
    apply(stores, again, blob)

    assert in_mounts(twin, tree) == in_mounts(again, tree) == in_mounts(changed, tree)
    assert blob.digest == make(stores, below, changed).digest


@pytest.mark.parametrize("size", [10, 40 << 20])
def test_a_target_that_takes_nothing_ends_the_writing(stores: Stores, size: int) -> None:
    overlay = stores.snapshotters["overlayfs"]
    changed = overlay.prepare(SCOPE, "changed")
    in_mounts(changed, lambda root: (root / "file").write_bytes(os.urandom(size)))
    read_only = overlay.view(SCOPE, "read-only")

    with pytest.raises(Internal, match=r"cannot write 'file' of the layer: Read-only file system"):
        stores.run(lambda: written(stores, Changes(overlay.view(SCOPE, "below"), changed, read_only)))

    assert stores.content.walk(SCOPE) == []
    assert stores.content.statuses(SCOPE) == []


async def written(stores: Stores, changes: Changes) -> Descriptor:
    return await write_layer(stores.content, stores.workers, SCOPE, changes)
