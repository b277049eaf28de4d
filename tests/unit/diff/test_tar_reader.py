"""The tar reader against Python's tarfile as writer, and against damage."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci import tar
from oci.errors import DataLoss, GantryError, InvalidArgument

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=120)
KINDS = {tarfile.REGTYPE: b"0"[0], tarfile.SYMTYPE: tar.SYMLINK, tarfile.LNKTYPE: tar.HARDLINK}


def reader(data: bytes, step: int = 1 << 20) -> tar.TarReader:
    """Reads ``data`` in pieces of at most ``step`` bytes."""
    source = io.BytesIO(data)
    return tar.TarReader(lambda size: source.read(min(size, step)))


def archive(entries: list[tuple[tarfile.TarInfo, bytes]], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for entry, data in entries:
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    return out.getvalue()


MEMBERS = st.lists(
    st.tuples(NAMES, st.sampled_from(sorted(KINDS)), st.binary(max_size=1500), st.integers(0, 0o7777),
              st.integers(0, 0xFFFFFFFE), st.integers(0, 2**33), NAMES), max_size=6,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(members=MEMBERS, form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), step=st.integers(1, 3000))
def test_what_tarfile_writes_is_read(
    members: list[tuple[str, bytes, bytes, int, int, int, str]], form: int, step: int
) -> None:
    entries = []
    for name, kind, data, mode, owner, mtime, link in members:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.uid, entry.gid, entry.mtime = kind, mode, owner, owner, mtime
        entry.linkname = link if kind != tarfile.REGTYPE else ""
        entries.append((entry, data if kind == tarfile.REGTYPE else b""))
    source = reader(archive(entries, form), step)
    for (entry, data), (name, kind, _, mode, owner, mtime, _link) in zip(entries, members, strict=True):
        found = source.next()
        assert found is not None
        assert (found.name, found.kind, found.mode, found.uid) == (name, KINDS[kind], mode, owner)
        assert (found.mtime, found.link) == (mtime * 10**9, entry.linkname)
        assert source.read_all(1 << 20) == data
    assert source.next() is None


def test_nanoseconds_and_attributes() -> None:
    entry = tarfile.TarInfo("x")
    entry.pax_headers = {"mtime": "-1.5", "SCHILY.xattr.user.a": "\0b", "SCHILY.xattr.user.c=d": "e"}
    found = reader(archive([(entry, b"")], tarfile.PAX_FORMAT)).next()
    assert found is not None
    assert found.mtime == -1_500_000_000
    assert found.xattrs["user.a"] == b"\0b"


def test_data_that_is_not_read_is_skipped() -> None:
    entries = [(tarfile.TarInfo(name), name.encode() * 700) for name in ("a", "b")]
    assert [entry.name for entry in reader(archive(entries, tarfile.GNU_FORMAT), 100)] == ["a", "b"]


def test_a_member_is_bounded_where_it_is_read_whole() -> None:
    source = reader(archive([(tarfile.TarInfo("a"), b"x" * 100)], tarfile.GNU_FORMAT))
    source.next()
    with pytest.raises(InvalidArgument, match="limit"):
        source.read_all(99)


@pytest.mark.parametrize("keep", [100, 512, 700, 1023])
def test_truncation(keep: int) -> None:
    data = archive([(tarfile.TarInfo("a"), b"x" * 600)], tarfile.GNU_FORMAT)[:keep]
    with pytest.raises(DataLoss, match="truncated"):
        for entry in (source := reader(data)):
            assert entry
            list(source.data())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_told(data: st.DataObject) -> None:
    entry = tarfile.TarInfo("n" * 120)
    entry.pax_headers = {"mtime": "1.5", "GNU.sparse.map": "0,5", "GNU.sparse.size": "9"}
    made = bytearray(archive([(entry, b"12345")], tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 5))):
        made[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    try:
        for _ in (source := reader(bytes(made))):
            list(source.data())
    except GantryError as error:
        assert error.message
