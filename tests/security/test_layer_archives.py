"""Hostile layers: whatever an archive says, nothing outside of its snapshot is touched, and no worker is hurt."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from containerd_py.diff.pool import LayerWorkers
from containerd_py.interfaces import Mount
from oci.errors import DataLoss, GantryError, InvalidArgument, ResourceExhausted
from tests.integration.diff.conftest import SCOPE, Stores, folder, layer, member, tree
from tests.integration.snapshots.conftest import in_mounts


class Target:
    """A snapshot to attack, and a directory beside it that must stay as it is."""

    def __init__(self, stores: Stores, kind: str) -> None:
        self.stores = stores
        self.outside = stores.root / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_text("secret")
        (self.outside / "folder").mkdir()
        self.snapshotter = stores.snapshotters[kind]
        in_mounts(self.snapshotter.prepare(SCOPE, "a"), self._base)
        self.snapshotter.commit(SCOPE, "base", "a")
        self.mounts = self.snapshotter.prepare(SCOPE, "target", "base")
        self._before = tree(self.outside)
        self._places = self._listing()

    def _base(self, root: Path) -> None:
        os.symlink(self.outside, root / "absolute")
        os.symlink("/".join([".."] * 20) + str(self.outside), root / "climbing")
        (root / "file").write_text("file")

    def _listing(self) -> list[str]:
        return sorted(os.listdir("/")) + sorted(os.listdir(self.stores.root))

    def apply(self, data: bytes) -> None:
        try:
            self.stores.apply(self.mounts, data)
        finally:
            assert tree(self.outside) == self._before
            assert self._listing() == self._places

    def seen(self) -> dict[str, Any]:
        return dict(in_mounts(self.mounts, tree))


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LayerWorkers]:
    """One worker for all attacks: that it survives them is part of what is tested."""
    made = LayerWorkers(str(tmp_path_factory.mktemp("worker") / "places"))
    made.start()
    yield made
    assert made.alive, "an archive ended the worker"
    made.close()


@pytest.fixture(params=["overlayfs", "native"])
def target(request: pytest.FixtureRequest, tmp_path: Path, workers: LayerWorkers) -> Iterator[Target]:
    made = Stores(tmp_path, workers)
    yield Target(made, request.param)
    made.close()


@pytest.fixture
def stores(tmp_path: Path, workers: LayerWorkers) -> Iterator[Stores]:
    made = Stores(tmp_path, workers)
    yield made
    made.close()


@pytest.mark.parametrize("name", ["/evil", "../../../../evil", "a/../../../evil", "./..//../evil", "//evil"])
def test_names_cannot_climb(target: Target, name: str) -> None:
    target.apply(layer(member(name, b"x")))
    assert "evil" in target.seen()


@pytest.mark.parametrize("link", ["absolute", "climbing"])
@pytest.mark.parametrize("name", ["evil", "secret", "folder/evil", ".wh.secret", ".wh..wh..opq"])
def test_links_of_the_base_lead_nowhere_outside(target: Target, link: str, name: str) -> None:
    with contextlib.suppress(GantryError):
        target.apply(layer(member(f"{link}/{name}", b"x")))


def test_links_of_the_layer_itself_lead_nowhere_outside(target: Target) -> None:
    chain = [member("l0", type=tarfile.SYMTYPE, linkname=str(target.outside))]
    chain += [member(f"l{n}", type=tarfile.SYMTYPE, linkname=f"l{n - 1}") for n in range(1, 30)]
    target.apply(layer(*chain, member("l29/evil", b"x"), folder("l5/folder", mode=0o777), member("l5/.wh.secret")))


def test_a_link_that_turns_round_and_round_is_no_trap(target: Target) -> None:
    loop = [member("x", type=tarfile.SYMTYPE, linkname="y"), member("y", type=tarfile.SYMTYPE, linkname="x")]
    with contextlib.suppress(GantryError):
        target.apply(layer(*loop, member("x/evil", b"x")))


@pytest.mark.parametrize("link", ["../../../../../../etc/passwd", "/etc/passwd", "absolute/secret", "climbing/secret"])
def test_hard_links_cannot_reach_outside(target: Target, link: str) -> None:
    with pytest.raises(InvalidArgument, match="hard link"):
        target.apply(layer(member("stolen", type=tarfile.LNKTYPE, linkname=link)))


def test_a_file_over_a_link_replaces_the_link(target: Target) -> None:
    target.apply(layer(member("absolute", b"now a file"), member("climbing", type=tarfile.DIRTYPE, mode=0o777)))
    seen = target.seen()
    assert seen["absolute"].content == b"now a file"
    assert stat.S_ISDIR(seen["climbing"].mode)


def test_devices_are_made_as_named_and_no_others(target: Target) -> None:
    target.apply(layer(member("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)))
    assert target.seen()["dev/null"].device == os.makedev(1, 3)


@pytest.mark.parametrize("name", [".wh...", ".wh..", ".wh."])
def test_whiteouts_of_the_parent_are_refused(target: Target, name: str) -> None:
    with pytest.raises(InvalidArgument, match="whiteout"):
        target.apply(layer(folder("d"), member(f"d/{name}")))
    assert "file" in target.seen()


def test_climbing_whiteouts_stay_inside(target: Target) -> None:
    target.apply(layer(member("../../../.wh.file"), member("absolute/.wh.secret")))
    assert "file" not in target.seen()


def test_the_root_is_not_replaced(target: Target) -> None:
    with pytest.raises(InvalidArgument, match="root"):
        target.apply(layer(member("./", b"x", type=tarfile.SYMTYPE, linkname="/etc")))


def test_the_last_of_duplicate_entries_wins(target: Target) -> None:
    again = [member("d", b"file"), folder("d"), member("d/x", b"1"), member("d/x", b"22")]
    target.apply(layer(*again, member("l", type=tarfile.LNKTYPE, linkname="d/x"), member("d/x", b"333")))
    seen = target.seen()
    assert (seen["d/x"].content, seen["l"].content) == (b"333", b"22")


def test_overlay_attributes_of_an_archive_are_dropped(stores: Stores) -> None:
    redirect = {f"SCHILY.xattr.{kind}.overlay.redirect": "/secret" for kind in ("trusted", "user")}
    mounts = stores.snapshotters["overlayfs"].prepare(SCOPE, "target")
    stores.apply(mounts, layer(folder("d", pax_headers={**redirect, "SCHILY.xattr.user.kept": "1"})))
    assert in_mounts(mounts, lambda root: os.listxattr(root / "d")) == ["user.kept"]


def test_a_bomb_fills_the_disk_and_not_the_memory(stores: Stores) -> None:
    out = io.BytesIO()
    with gzip.open(out, "wb", compresslevel=1) as packed:
        header = tarfile.TarInfo("bomb")
        header.size = 200 << 20
        packed.write(header.tobuf())
        for _ in range(200):
            packed.write(bytes(1 << 20))
    mounts = [Mount("tmpfs", "tmpfs", options=("size=8m",))]
    with pytest.raises(ResourceExhausted, match="bomb"):
        stores.apply(mounts, out.getvalue())


def corrupted(change: dict[int, bytes]) -> bytes:
    """A tar of one member whose header is overwritten at offsets, with a checksum that fits."""
    data = bytearray(layer(member("file", b"x" * 600)))
    for at, value in change.items():
        data[at : at + len(value)] = value
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        corrupted({124: b"\x80" + b"\xff" * 11}),
        corrupted({124: b"\xff" * 12}),
        corrupted({124: b"77777777777\0"}),
        corrupted({124: b"notanumber!\0"}),
        corrupted({108: b"\x80" + b"\xff" * 7}),
        corrupted({116: b"\xff" * 8}),
        corrupted({136: b"\x80" + b"\xff" * 11}),
        corrupted({156: b"Z"}),
        corrupted({156: b"x", 124: b"77777777777\0"}),
        corrupted({156: b"L", 124: b"77777777777\0"}),
        corrupted({156: b"S", 386: b"7" * 24 * 4}),
        corrupted({0: b"\xff" * 100}),
        corrupted({156: b"3", 329: b"\x80" + b"\xff" * 7}),
        layer(member("f", b"x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})),
        layer(member("f", b"x" * 512, pax_headers={"GNU.sparse.map": "0,1,5", "GNU.sparse.size": "9" * 30})),
        layer(member("f", b"x" * 512, pax_headers={"GNU.sparse.map": "0,512", "GNU.sparse.size": str(1 << 62)})),
        layer(member("f", b"x", pax_headers={"mtime": "9" * 25})),
        layer(member("f", b"x", pax_headers={"mtime": "nan"})),
        layer(member("f", b"x", pax_headers={"uid": "99999999999999"})),
        layer(member("f", b"x", pax_headers={"SCHILY.xattr.": "v"})),
        layer(member("f", b"x", pax_headers={"SCHILY.xattr.system.posix_acl_access": "rubbish"})),
        layer(member("f", b"x", pax_headers={"SCHILY.xattr.user." + "n" * 300: "v"})),
        layer(member("n" * 300, b"x")),
        layer(member("/".join("d" * 200 for _ in range(40)), b"x")),
        layer(member("f", b"x"))[:700],
        layer(member("f", b"x", type=tarfile.CHRTYPE, devmajor=0, devminor=0)),
        b"not a tar archive at all" * 100,
        gzip.compress(layer(member("f", b"x")))[:-20],
        b"\x28\xb5\x2f\xfd" + b"rubbish" * 100,
        b"\x1f\x8b" + b"rubbish" * 100,
    ],
    ids=lambda _: "",
)
def test_odd_archives_are_taken_or_refused_in_words(target: Target, data: bytes) -> None:
    try:
        target.apply(data)
    except GantryError as error:
        assert error.message
        assert "Traceback" not in error.message
        assert not error.message.startswith("layer worker: "), error.message
        assert "ended without an answer" not in error.message


def test_truncation_is_told(stores: Stores) -> None:
    mounts = stores.snapshotters["overlayfs"].prepare(SCOPE, "target")
    with pytest.raises(DataLoss, match="truncated"):
        stores.apply(mounts, layer(member("f", b"x" * 5000))[:3000])


NAMES = st.text(st.sampled_from("ab./\\\0\nw h"), min_size=1, max_size=12) | st.sampled_from(
    ["absolute", "climbing", "..", ".wh.file", ".wh..wh..opq", "absolute/secret", "climbing/folder/x", "file", "d/d"]
)
KINDS = [
    tarfile.REGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    b"V",
    b"7",
]
MEMBERS = st.lists(st.tuples(NAMES, st.sampled_from(KINDS), NAMES, st.integers(0, 0o7777)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=MEMBERS)
def test_any_archive_is_contained(target: Target, members: list[tuple[str, bytes, str, int]]) -> None:
    entries = [
        member(name.replace("\0", "") or "x", type=kind, linkname=link.replace("\0", ""), mode=mode)
        for name, kind, link, mode in members
    ]
    try:
        target.apply(layer(*entries))
    except GantryError as error:
        assert not error.message.startswith("layer worker: "), error.message
        assert "ended without an answer" not in error.message
