"""Archives of images are tables of names: whatever they hold, nothing outside of the table is named."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import random
import tarfile
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from containerd_py.archives import layout, reader
from containerd_py.archives.reader import Contents, Source, Stored, read_archive
from oci.errors import DataLoss, FailedPrecondition, GantryError, InvalidArgument, Unimplemented
from oci.image import MEDIA_LAYER, MEDIA_LAYER_GZIP


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def store(source: Source, size: int, expected: str, name: str) -> Stored:
    data = b""
    while len(data) < size:
        piece = source.read(size - len(data))
        if not piece:
            raise DataLoss(f"archive is cut short within {name}")
        data += piece
    if expected and sha256(data) != expected:
        raise DataLoss(f"{name} has another digest")
    return Stored(sha256(data), size, data[:8])


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                archive.addfile(one)
            else:
                entry = tarfile.TarInfo(one[0])
                entry.size = len(one[1])
                archive.addfile(entry, io.BytesIO(one[1]))
    return out.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def read(data: bytes) -> Contents:
    return read_archive(io.BytesIO(data), store)


LAYER = tar(("file", b"data" * 100))
CONFIG = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [sha256(LAYER)]}}).encode()


def docker_archive(*extra: tuple[str, bytes] | tarfile.TarInfo, layer: bytes = LAYER, **changes: Any) -> bytes:
    entry = {"Config": "c.json", "RepoTags": ["app:v1"], "Layers": ["a/layer.tar"], **changes}
    return tar(("a/layer.tar", layer), ("c.json", CONFIG), ("manifest.json", json.dumps([entry]).encode()), *extra)


@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        gzip.compress,
        bz2.compress,
        lzma.compress,
        zstandard.ZstdCompressor().compress,
        lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
        lambda data: gzip.compress(data) + b"\0" * 1000,
        lambda data: zstandard.ZstdCompressor().compress(data[:700]) + zstandard.ZstdCompressor().compress(data[700:]),
    ],
)
def test_whatever_is_wrapped_around(wrap: Any) -> None:
    contents = read(wrap(docker_archive(("big", random.Random(1).randbytes(300_000)))))
    (image,) = layout.images(contents)
    assert image.names == ("app:v1",)
    assert contents.find("a/layer.tar").digest == sha256(LAYER)


@pytest.mark.parametrize("wrap", [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("left", [10, 200, 5000])
def test_cut_short(wrap: Any, left: int) -> None:
    data = wrap(docker_archive(("big", random.Random(1).randbytes(300_000))))
    with pytest.raises(GantryError):
        read(data[:left])


def test_layers_may_be_links_as_old_docker_wrote_them() -> None:
    contents = read(docker_archive(link("b/layer.tar", "../a/layer.tar"), Layers=["b/layer.tar", "a/layer.tar"]))
    (image,) = layout.images(contents)
    manifest = json.loads(image.made)
    assert [one["digest"] for one in manifest["layers"]] == [sha256(LAYER)] * 2
    assert manifest["layers"][0]["mediaType"] == MEDIA_LAYER


def test_compressed_layers_are_known_by_their_bytes() -> None:
    (image,) = layout.images(read(docker_archive(layer=gzip.compress(LAYER))))
    assert json.loads(image.made)["layers"][0]["mediaType"] == MEDIA_LAYER_GZIP
    with pytest.raises(Unimplemented, match="xz"):
        layout.images(read(docker_archive(layer=lzma.compress(LAYER))))


def test_the_same_archive_makes_the_same_manifest() -> None:
    first, second = (layout.images(read(docker_archive()))[0] for _ in range(2))
    assert first.made == second.made
    assert first.target.digest == sha256(first.made)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x", "..", "./../../etc/passwd"])
@pytest.mark.parametrize("make", ["file", "link", "target", "hard"])
def test_names_that_lead_out_are_refused(name: str, make: str) -> None:
    entries: dict[str, tuple[str, bytes] | tarfile.TarInfo] = {
        "file": (name, b"x"),
        "link": link(name, "a"),
        "target": link("a", f"{name}"),
        "hard": link("a", name, tarfile.LNKTYPE),
    }
    with pytest.raises(InvalidArgument, match="leads out"):
        read(docker_archive(entries[make]))


def test_absolute_names_are_names_inside() -> None:
    assert "etc/passwd" in read(docker_archive(("/etc/passwd", b"x"))).files


def test_links_that_turn_round_are_no_trap() -> None:
    contents = read(docker_archive(link("x", "y"), link("y", "x"), Layers=["x"]))
    with pytest.raises(InvalidArgument, match="no such file"):
        layout.images(contents)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_no_file_is_passed_over(kind: bytes) -> None:
    assert len(layout.images(read(docker_archive(link("odd", "", kind))))) == 1


def test_blobs_must_be_what_they_are_called() -> None:
    with pytest.raises(DataLoss, match="another digest"):
        read(tar((f"blobs/sha256/{'0' * 64}", b"x")))


def test_extended_headers_and_documents_are_bounded() -> None:
    big = tarfile.TarInfo("x")
    big.pax_headers = {"comment": "x" * (reader.MAX_HEADER + 1)}
    with pytest.raises(FailedPrecondition, match="header"):
        read(tar(big))
    with pytest.raises(FailedPrecondition, match="documents have at most"):
        read(tar(("index.json", b" " * (reader.MAX_DOCUMENT + 1))))


def test_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_ENTRIES", 10)
    with pytest.raises(FailedPrecondition, match="more than 10 entries"):
        read(tar(*((f"f{n}", b"") for n in range(11))))


@pytest.mark.parametrize(
    ("members", "kind", "text"),
    [
        ([], InvalidArgument, "neither"),
        ([("other", b"x")], InvalidArgument, "neither"),
        ([("repositories", b'{"app":{"v1":"' + b"a" * 64 + b'"}}')], InvalidArgument, "does not contain a manifest"),
        ([("manifest.json", b"{")], DataLoss, "cannot be read"),
        ([("manifest.json", b'[{"Config":5}]')], DataLoss, "cannot be read"),
        ([("manifest.json", b'[{"Config":"missing"}]')], InvalidArgument, "missing"),
        ([("manifest.json", b'[{"Config":"../../etc/passwd"}]')], InvalidArgument, "leads out"),
        ([("index.json", b"[" * 100_000)], DataLoss, "cannot be read"),
        ([("index.json", b'{"manifests":[{"digest":"x"}]}')], DataLoss, "cannot be read"),
    ],
)
def test_what_is_no_image_is_refused_in_words(members: list[Any], kind: type[GantryError], text: str) -> None:
    with pytest.raises(kind, match=text):
        layout.images(read(tar(*members)))


def test_nulls_of_go_are_empty() -> None:
    (image,) = layout.images(read(docker_archive(RepoTags=None)))
    assert image.names == ()
    (image,) = layout.images(read(docker_archive(Layers=None)))
    assert json.loads(image.made)["layers"] == []


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_told_and_never_more(data: st.DataObject) -> None:
    archive = bytearray(docker_archive())
    for _ in range(data.draw(st.integers(1, 6))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    try:
        layout.images(read(bytes(archive)))
    except GantryError as error:
        assert error.message
