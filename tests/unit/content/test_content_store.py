"""The content store: whole blobs only, resumable ingests, namespaces that share bytes and not sight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from containerd_py.interfaces import Resource, Scope
from oci import digest, errors
from tests.unit.metadata.stores import Rooms, rooms

A, B = Scope("a"), Scope("b")
DATA = b"some bytes" * 1000
DIGEST = digest.of_bytes(DATA)


def run(root: Path, body: Callable[[Rooms], Coroutine[Any, Any, None]]) -> None:
    async def inside() -> None:
        async with rooms(root) as made:
            await asyncio.wait_for(body(made), 20)

    asyncio.run(inside())


def test_a_blob_is_seen_when_whole_and_an_ingest_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async def body(on: Rooms) -> None:
        with on.content.writer(A, "r", total=len(DATA)) as writer:
            writer.write(DATA[:100])
        assert on.content.status(A, "r").offset == 100
        assert on.content.walk(A) == [] and on.files() == set()
        with on.content.writer(A, "r") as writer:
            assert writer.offset == 100 and writer.status().total == len(DATA)
            writer.write(DATA[100:])
            assert writer.commit(len(DATA), DIGEST, {"k": "v", "empty": ""}) == DIGEST
        assert on.content.read(A, DIGEST) == DATA
        assert on.content.info(A, DIGEST).labels == {"k": "v"}
        assert on.content.statuses(A) == []
        assert list((tmp_path / "content" / "ingest").iterdir()) == []
        assert ("a", "/content/create") in on.events.seen

    run(tmp_path, body)


def test_what_does_not_match_is_no_blob(tmp_path: Path) -> None:
    async def body(on: Rooms) -> None:
        with on.content.writer(A, "r") as writer:
            writer.write(DATA)
            with pytest.raises(errors.FailedPrecondition, match="digest"):
                writer.commit(0, digest.of_bytes(b"other"))
            with pytest.raises(errors.FailedPrecondition, match="size"):
                writer.commit(3)
            writer.truncate(10)
            assert writer.digest() == digest.of_bytes(DATA[:10])
            with pytest.raises(errors.Unavailable):
                on.content.writer(A, "r")
            with pytest.raises(errors.Unavailable):
                on.content.abort(A, "r")
        on.content.abort(A, "r")
        with pytest.raises(errors.NotFound):
            on.content.status(A, "r")
        assert on.files() == set()

    run(tmp_path, body)


def test_namespaces_share_bytes_but_not_sight(tmp_path: Path) -> None:
    async def body(on: Rooms) -> None:
        on.put(A, DATA)
        with pytest.raises(errors.NotFound):
            on.content.info(B, DIGEST)
        with pytest.raises(errors.AlreadyExists):
            on.content.writer(A, "again", expected=DIGEST)
        with on.content.writer(B, "r", expected=DIGEST) as writer:
            assert writer.offset == len(DATA)
            on.content.delete(A, DIGEST)
            await on.collector.collect()
            assert on.files() == set()
            writer.commit()
        assert on.content.read(B, DIGEST) == DATA

    run(tmp_path, body)


def test_a_shared_ingest_can_be_written_anew_without_harm_to_the_blob(tmp_path: Path) -> None:
    async def body(on: Rooms) -> None:
        on.put(A, DATA)
        with on.content.writer(B, "r", expected=DIGEST) as writer:
            writer.truncate(0)
            writer.write(DATA[:5])
        assert on.content.read(A, DIGEST) == DATA
        with on.content.writer(B, "r") as writer:
            assert writer.offset == 5

    run(tmp_path, body)


def test_another_algorithm(tmp_path: Path) -> None:
    import hashlib

    async def body(on: Rooms) -> None:
        name = "sha512:" + hashlib.sha512(DATA).hexdigest()
        with on.content.writer(A, "r") as writer:
            writer.write(DATA)
            assert writer.commit(0, name) == name
        assert on.content.read(A, name) == DATA

    run(tmp_path, body)


def test_hostile_names_stay_inside(tmp_path: Path) -> None:
    async def body(on: Rooms) -> None:
        for name in ("sha256:../../x", "sha256:", "../x:00", "sha256:" + "A" * 64):
            with pytest.raises(errors.InvalidArgument):
                on.content.open(A, name)
        with on.content.writer(A, "../../../escape") as writer:
            writer.write(b"x")
        assert not (tmp_path.parent / "escape").exists()
        assert on.content.status(A, "../../../escape").offset == 1

    run(tmp_path, body)


def test_a_lease_holds_what_is_made_or_found_under_it(tmp_path: Path) -> None:
    async def body(on: Rooms) -> None:
        on.leases.create(A, "l")
        under = Scope("a", "l")
        on.put(A, DATA)
        with pytest.raises(errors.AlreadyExists):
            on.content.writer(under, "r", expected=DIGEST)
        assert on.leases.resources(A, "l") == [Resource(DIGEST, "content")]
        other = on.put(under, b"other")
        assert Resource(other, "content") in on.leases.resources(A, "l")
        with pytest.raises(errors.NotFound):
            on.content.writer(Scope("a", "no such lease"), "x")
        await on.collector.collect()
        assert on.content.read(A, other) == b"other"
        on.leases.delete(A, "l")
        await on.collector.collect()
        assert on.content.walk(A) == [] and on.files() == set()

    run(tmp_path, body)


def test_files_that_nobody_knows_go_at_start(tmp_path: Path) -> None:
    async def body(on: Rooms) -> None:
        kept = on.put(A, DATA, {"containerd.io/gc.root": "1"})
        stray = tmp_path / "content" / "blobs" / "sha256" / ("0" * 64)
        stray.write_bytes(b"half")
        (tmp_path / "content" / "ingest" / "1234").mkdir()
        assert on.content.cleanup() == 2
        assert on.files() == {kept.removeprefix("sha256:")}

    run(tmp_path, body)


def test_labels_are_masked_as_containerd_does(tmp_path: Path) -> None:
    async def body(on: Rooms) -> None:
        on.put(A, DATA, {"one": "1", "two": "2"})
        update = on.content.update
        assert update(A, DIGEST, {"two": "", "three": "3"}, ["labels.two", "labels.three"]).labels == {
            "one": "1",
            "three": "3",
        }
        assert update(A, DIGEST, {"x": "y"}, ["labels"]).labels == {"x": "y"}
        with pytest.raises(errors.InvalidArgument):
            update(A, DIGEST, {}, ["size"])
        with pytest.raises(errors.InvalidArgument):
            update(A, DIGEST, {"k": "v" * 5000})
        assert [info.digest for info in on.content.walk(A, ["labels.x==y"])] == [DIGEST]
        assert on.content.walk(A, ["labels.x==z"]) == []

    run(tmp_path, body)
