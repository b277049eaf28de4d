"""Garbage collection against a model: what can be reached stays, all else goes, also while others write."""

from __future__ import annotations

import asyncio
import datetime
import sqlite3
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from containerd_py.gc import collector as collector_module
from containerd_py.gc.mark import mark
from containerd_py.interfaces import GC_EXPIRE, GC_FLAT, GC_ROOT, Image, Scope
from containerd_py.metadata.database import pack_labels
from oci import digest
from oci.image import Descriptor
from tests.unit.metadata.stores import Rooms, rooms

NS = Scope("ns")
COUNT = 8
DIGESTS = [digest.of_bytes(bytes([number])) for number in range(COUNT)]
KEYS = [f"snapshot{number}" for number in range(COUNT)]
Node = tuple[str, int]
Edge = tuple[Node, Node]

nodes = st.tuples(st.sampled_from(("content", "snapshots/o")), st.integers(0, COUNT - 1))


def rfc3339(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(time.time() + seconds, datetime.UTC).isoformat().replace("+00:00", "Z")


def name(node: Node) -> str:
    return DIGESTS[node[1]] if node[0] == "content" else KEYS[node[1]]


def label(node: Node, back: bool = False) -> str:
    kind = "snapshot.o" if node[0] == "snapshots/o" else "content"
    return f"containerd.io/gc.{'b' if back else ''}ref.{kind}"


def build(
    on: Rooms,
    parents: list[int | None],
    forward: list[Edge],
    backward: list[Edge],
    roots: set[Node],
    leases: list[tuple[str, set[Node]]],
    images: list[int],
) -> set[Node]:
    """Put the graph into the tables; the nodes that must stay."""
    labels: dict[Node, dict[str, str]] = {}
    for node in roots:
        labels.setdefault(node, {})[GC_ROOT] = "x"
    for number, (source, target) in enumerate(forward):
        suffix = f"/{number}" if target[0] == "snapshots/o" else f".{number}"
        labels.setdefault(source, {})[label(target) + suffix] = name(target)
    for number, (source, target) in enumerate(backward):
        suffix = f"/{number}" if target[0] == "snapshots/o" else f".{number}"
        labels.setdefault(source, {})[label(target, True) + suffix] = name(target)
    with on.database.transaction() as tx:
        for number in range(COUNT):
            packed = pack_labels(labels.get(("content", number), {}))
            tx.execute("INSERT INTO content VALUES ('ns', ?, 1, ?, 1, 1)", (DIGESTS[number], packed))
            parent = parents[number]
            packed = pack_labels(labels.get(("snapshots/o", number), {}))
            tx.execute(
                "INSERT INTO snapshots VALUES (?, 'o', 'ns', ?, ?, 3, ?, 0, 0, 1, 1)",
                (number + 1, KEYS[number], None if parent is None else parent + 1, packed),
            )
        for number, (kind, held) in enumerate(leases):
            made = {"live": {}, "flat": {GC_FLAT: "x"}, "later": {GC_EXPIRE: rfc3339(60)}}
            made["expired"] = {GC_EXPIRE: rfc3339(-60)}
            tx.execute("INSERT INTO leases VALUES ('ns', ?, ?, 1)", (f"l{number}", pack_labels(made[kind])))
            for node in held:
                tx.execute("INSERT INTO lease_resources VALUES ('ns', ?, ?, ?)", (f"l{number}", node[0], name(node)))
    for number in images:
        on.images.create(NS, Image(f"i{number}", Descriptor("t", DIGESTS[number], 1)))
    # The model, by repetition instead of a walk.
    alive = roots | {("content", number) for number in images}
    for kind, held in leases:
        if kind in ("live", "later"):
            alive |= held
    up = [(("snapshots/o", n), ("snapshots/o", p)) for n, p in enumerate(parents) if p is not None]
    edges = forward + up + [(target, source) for source, target in backward]
    alive = closure(alive, edges)
    flat = set().union(*(held for kind, held in leases if kind == "flat"))
    return alive | closure(flat, up)


def closure(start: set[Node], edges: list[Edge]) -> set[Node]:
    reached = set(start)
    for _ in range(2 * COUNT):
        reached |= {target for source, target in edges if source in reached}
    return reached


def present(on: Rooms) -> set[Node]:
    found = {("content", DIGESTS.index(d)) for (d,) in on.database.rows("SELECT digest FROM content")}
    return found | {("snapshots/o", KEYS.index(k)) for (k,) in on.database.rows("SELECT key FROM snapshots")}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_exactly_the_unreachable_goes(data: st.DataObject) -> None:
    parents = [data.draw(st.none() | st.integers(0, number - 1)) if number else None for number in range(COUNT)]
    edges = st.lists(st.tuples(nodes, nodes), max_size=8)
    kinds = st.sampled_from(("live", "flat", "later", "expired"))
    graph = (
        parents,
        data.draw(edges),
        data.draw(edges),
        data.draw(st.sets(nodes, max_size=2)),
        data.draw(st.lists(st.tuples(kinds, st.sets(nodes, max_size=3)), max_size=3)),
        data.draw(st.lists(st.integers(0, COUNT - 1), max_size=2, unique=True)),
    )

    async def body() -> None:
        with tempfile.TemporaryDirectory() as root:
            async with rooms(Path(root)) as on:
                expected = build(on, *graph)
                await on.collector.collect()
                assert present(on) == expected
                expired = sum(kind == "expired" for kind, _ in graph[4])
                assert len(on.leases.list(NS)) == len(graph[4]) - expired

    asyncio.run(body())


def test_what_became_alive_while_it_was_marked_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is created between mark and sweep keeps its blob."""

    async def body() -> None:
        async with rooms(tmp_path) as on:
            blob = on.put(NS, b"blob")
            other = on.put(NS, b"other")
            calls: list[int] = []

            def marked(connection: sqlite3.Connection, now: int, held: set[tuple[str, str]]) -> object:
                result = mark(connection, now, held)
                if not calls:
                    on.images.create(NS, Image("i", Descriptor("t", blob, 4)))
                calls.append(1)
                return result

            monkeypatch.setattr(collector_module, "mark", marked)
            await on.collector.collect()
            assert [info.digest for info in on.content.walk(NS)] == [blob]
            assert on.files() == {blob.removeprefix("sha256:")} and other != blob
            assert len(calls) == 2

    asyncio.run(body())


def test_collection_ends_although_others_write_all_the_time(tmp_path: Path) -> None:
    async def body() -> None:
        async with rooms(tmp_path) as on:
            for number in range(300):
                with on.database.transaction() as tx:
                    values = (digest.of_bytes(f"{number}".encode()),)
                    tx.execute("INSERT INTO content VALUES ('ns', ?, 1, '{}', 1, 1)", values)
            collecting = asyncio.ensure_future(on.collector.collect())
            number = 0
            longest = 0.0
            while not collecting.done():
                number += 1
                begun = time.monotonic()
                on.images.create(NS, Image(f"i{number}", Descriptor("t", DIGESTS[0], 1)))
                longest = max(longest, time.monotonic() - begun)
                await asyncio.sleep(0)
            assert on.content.walk(NS) == []
            assert longest < 0.5

    asyncio.run(body())


def test_an_ingest_stays_while_written_leased_or_young(tmp_path: Path) -> None:
    async def body() -> None:
        async with rooms(tmp_path) as on:
            on.leases.create(NS, "l")
            for where, ref in ((NS, "young"), (Scope("ns", "l"), "leased"), (NS, "old"), (NS, "written")):
                on.content.writer(where, ref).close()
            writer = on.content.writer(NS, "written")
            with on.database.transaction() as tx:
                tx.execute("UPDATE ingests SET expires = 1 WHERE ref IN ('old', 'written')")
            await on.collector.collect()
            assert [status.ref for status in on.content.statuses(NS)] == ["leased", "written", "young"]
            writer.close()
            on.leases.delete(NS, "l")
            await on.collector.collect()
            assert [status.ref for status in on.content.statuses(NS)] == ["young"]
            assert len(list((tmp_path / "content" / "ingest").iterdir())) == 1

    asyncio.run(body())


def test_a_lease_that_expires_is_noticed_without_being_asked(tmp_path: Path) -> None:
    async def body() -> None:
        async with rooms(tmp_path) as on:
            on.leases.create(NS, "l", {GC_EXPIRE: rfc3339(0.3)})
            on.put(Scope("ns", "l"), b"blob")
            await on.collector.collect()
            assert len(on.content.walk(NS)) == 1
            deadline = time.monotonic() + 5
            while on.content.walk(NS):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            assert on.leases.list(NS) == []

    asyncio.run(body())
