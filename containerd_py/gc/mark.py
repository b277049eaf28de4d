"""What is alive: the graph of references, and what can be reached in it.

Rule: a pure function of the tables at one moment. An object is alive when it is a root or a live object refers to it.

Nodes are ``(namespace, type, key)``; types are those of leases' resources (``content``, ``ingests``, ``images``,
``mounts``, ``snapshots/<snapshotter>``) and ``containers``. References stay within a namespace.

* Roots: leases that have not expired (all they hold), images and containers, objects labelled ``gc.root``, ingests that
  have not expired, and ``held`` (ingests with a writer). Images with a ``gc.expire`` in the past are none.
* References: an image's target, a container's snapshot, a snapshot's parent, labels ``gc.ref.content[.x]``,
  ``gc.ref.snapshot.<snapshotter>[/x]``, ``gc.ref.image[.x]``; backwards the same with ``gc.bref``, also ``.container``.
* What a lease labelled ``gc.flat`` holds is alive, but not what that refers to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from containerd_py.interfaces import GC_FLAT, GC_ROOT
from containerd_py.metadata.database import unpack_labels
from containerd_py.metadata.labels import expiry

Node = tuple[str, str, str]
CONTENT = "content"
INGESTS = "ingests"
IMAGES = "images"
CONTAINERS = "containers"
MOUNTS = "mounts"
_PREFIX = "containerd.io/gc."
_REFERENCE = _PREFIX + "ref."
_BACK_REFERENCE = _PREFIX + "bref."
_KINDS = {"content": CONTENT, "image": IMAGES, "container": CONTAINERS, "mount": MOUNTS}


Row = tuple[Any, ...]


class Dead(NamedTuple):
    """What may go: rows by their table."""

    content: list[Row]
    """(namespace, digest)"""
    snapshots: list[Row]
    """(id, snapshotter, namespace, key), children before their parents"""
    ingests: list[Row]
    """(namespace, ref)"""
    images: list[Row]
    """(namespace, name)"""
    leases: list[Row]
    """(namespace, id)"""
    mounts: list[Row]
    """(namespace, name)"""

    @classmethod
    def none(cls) -> Dead:
        return cls([], [], [], [], [], [])

    def add(self, other: Dead) -> None:
        for rows, more in zip(self, other, strict=True):
            rows.extend(more)


class Graph:
    """Nodes, roots and references, as ``read`` found them."""

    def __init__(self) -> None:
        self.roots: set[Node] = set()
        self.flat: set[Node] = set()
        self.references: dict[Node, list[Node]] = {}
        self.next_expiry: int | None = None
        """The first moment after now at which something stops to count."""

    def refer(self, source: Node, target: Node) -> None:
        self.references.setdefault(source, []).append(target)

    def label(self, node: Node, labels: Mapping[str, str]) -> None:
        """Take in what ``labels`` of ``node`` say."""
        for key, value in labels.items():
            if not key.startswith(_PREFIX):
                continue
            if key == GC_ROOT:
                self.roots.add(node)
            elif key.startswith(_REFERENCE) and (kind := _kind(key.removeprefix(_REFERENCE))):
                self.refer(node, (node[0], kind, value))
            elif key.startswith(_BACK_REFERENCE) and (kind := _kind(key.removeprefix(_BACK_REFERENCE))):
                self.refer((node[0], kind, value), node)

    def expired(self, moment: int | None, now: int) -> bool:
        """Whether ``moment`` (None: never) is past; one that is not is remembered."""
        if moment is None:
            return False
        if moment > now:
            self.next_expiry = moment if self.next_expiry is None else min(self.next_expiry, moment)
        return moment <= now

    def alive(self) -> set[Node]:
        """All that the roots reach."""
        seen = set(self.roots)
        pending = list(seen)
        references = self.references
        while pending:
            for target in references.get(pending.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    pending.append(target)
        return seen | self.flat


def _kind(name: str) -> str:
    """The node type that the rest of a reference label names; "" for none."""
    if name.startswith("snapshot."):
        return f"snapshots/{name.removeprefix('snapshot.').partition('/')[0]}"
    for separator in ("", ".", "/"):
        word = name.partition(separator)[0] if separator else name
        if word in _KINDS:
            return _KINDS[word]
    return ""


def mark(connection: sqlite3.Connection, now: int, held: Iterable[tuple[str, str]] = ()) -> tuple[Dead, int | None]:
    """What is dead at ``now`` (nanoseconds), and when that may change by itself."""
    graph = Graph()
    graph.roots.update((namespace, INGESTS, ref) for namespace, ref in held)
    dead = Dead.none()
    read = connection.execute
    _read_leases(graph, dead, now, read("SELECT namespace, id, labels FROM leases").fetchall(), connection)
    for namespace, name, digest, packed in read("SELECT namespace, name, digest, labels FROM images"):
        labels = unpack_labels(packed)
        node = (namespace, IMAGES, name)
        if not graph.expired(expiry(labels), now):
            graph.roots.add(node)
        graph.refer(node, (namespace, CONTENT, digest))
        graph.label(node, labels)
    columns = "namespace, id, snapshotter, snapshot_key, labels"
    for namespace, id, snapshotter, key, packed in read(f"SELECT {columns} FROM containers"):  # noqa: S608 - a constant
        node = (namespace, CONTAINERS, id)
        graph.roots.add(node)
        if key:
            graph.refer(node, (namespace, f"snapshots/{snapshotter}", key))
        graph.label(node, unpack_labels(packed))
    for namespace, ref, expires in read("SELECT namespace, ref, expires FROM ingests"):
        if expires and not graph.expired(expires, now):
            graph.roots.add((namespace, INGESTS, ref))
    for namespace, digest, packed in read("SELECT namespace, digest, labels FROM content WHERE labels <> '{}'"):
        graph.label((namespace, CONTENT, digest), unpack_labels(packed))
    for namespace, name, packed in read("SELECT namespace, name, labels FROM mounts WHERE labels <> '{}'"):
        graph.label((namespace, MOUNTS, name), unpack_labels(packed))
    _read_snapshots(graph, connection)
    _sort_out(dead, graph.alive(), connection)
    return dead, graph.next_expiry


def _read_leases(
    graph: Graph, dead: Dead, now: int, leases: Iterable[tuple[str, str, str]], connection: sqlite3.Connection
) -> None:
    flat: dict[tuple[str, str], bool] = {}
    for namespace, id, packed in leases:
        labels = unpack_labels(packed)
        if graph.expired(expiry(labels), now):
            dead.leases.append((namespace, id))
        else:
            flat[namespace, id] = GC_FLAT in labels
            node = (namespace, "leases", id)
            graph.roots.add(node)
            graph.label(node, labels)
    for namespace, lease, type, id in connection.execute("SELECT namespace, lease, type, id FROM lease_resources"):
        if (namespace, lease) in flat:
            (graph.flat if flat[namespace, lease] else graph.roots).add((namespace, type, id))


def _read_snapshots(graph: Graph, connection: sqlite3.Connection) -> None:
    nodes: dict[int, Node] = {}
    parents: list[tuple[int, int]] = []
    for id, snapshotter, namespace, key, parent, packed in connection.execute(
        "SELECT id, snapshotter, namespace, key, parent, labels FROM snapshots"
    ):
        nodes[id] = node = (namespace, f"snapshots/{snapshotter}", key)
        if parent is not None:
            parents.append((id, parent))
        graph.label(node, unpack_labels(packed))
    for id, parent in parents:
        graph.refer(nodes[id], nodes[parent])


def _sort_out(dead: Dead, alive: set[Node], connection: sqlite3.Connection) -> None:
    """Put every row that is not alive into ``dead``."""

    def unreached(table: str, key: str, type: str) -> Iterator[tuple[str, str]]:
        for namespace, name in connection.execute(f"SELECT namespace, {key} FROM {table}"):  # noqa: S608 - names below
            if (namespace, type, name) not in alive:
                yield namespace, name

    dead.content.extend(unreached("content", "digest", CONTENT))
    dead.ingests.extend(unreached("ingests", "ref", INGESTS))
    dead.images.extend(unreached("images", "name", IMAGES))
    # Those that are being made, or are garbage already, are the manager's business.
    dead.mounts.extend(unreached("(SELECT namespace, name FROM mounts WHERE state = 1)", "name", MOUNTS))
    # A flat lease may hold a snapshot and not its parents: those stay, as no snapshot can live without them.
    kept: set[int] = set()
    rows = connection.execute("SELECT id, snapshotter, namespace, key, parent FROM snapshots ORDER BY id").fetchall()
    parents = {id: parent for id, *_, parent in rows}
    for id, snapshotter, namespace, key, _ in rows:
        if (namespace, f"snapshots/{snapshotter}", key) in alive:
            current: int | None = id
            while current is not None and current not in kept:
                kept.add(current)
                current = parents[current]
    gone = [(id, snapshotter, ns, key) for id, snapshotter, ns, key, _ in rows if id not in kept]
    depths: dict[int, int] = {}
    dead.snapshots.extend(sorted(gone, key=lambda row: _depth(row[0], parents, depths), reverse=True))


def _depth(id: int, parents: Mapping[int, int | None], known: dict[int, int]) -> int:
    """How many ancestors a snapshot has."""
    path: list[int] = []
    current: int | None = id
    while current is not None and current not in known:
        path.append(current)
        current = parents[current]
    start = 0 if current is None else known[current] + 1
    for depth, one in enumerate(reversed(path), start):
        known[one] = depth
    return known[id]
