"""Images, containers, leases and namespaces: what containerd's clients rely on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from containerd_py.interfaces import Image, Resource, Scope
from containerd_py.metadata.sandboxes import Sandboxes
from oci import digest, errors
from oci.image import Descriptor
from protos.containerd.containers_pb2 import Container
from protos.containerd.types_pb2 import Sandbox
from tests.unit.metadata.stores import Rooms, rooms

A, B = Scope("a"), Scope("b")
TARGET = Descriptor("type", digest.of_bytes(b"1"), 1, annotations={"k": "v"})
OTHER = Descriptor("type", digest.of_bytes(b"2"), 2)


def run(root: Path, body: Callable[[Rooms], None]) -> None:
    async def inside() -> None:
        async with rooms(root) as on:
            body(on)

    asyncio.run(inside())


def container(id: str = "c", **fields: object) -> Container:
    made = Container(id=id, image="i", labels={"k": "v", "empty": ""}, **fields)  # type: ignore[arg-type]  # test data
    made.runtime.name = made.runtime.name or "io.containerd.py.v2"
    made.spec.type_url, made.spec.value = "spec", b"{}"
    return made


def test_images(tmp_path: Path) -> None:
    def body(on: Rooms) -> None:
        made = on.images.create(A, Image("i", TARGET, {"a": "1", "b": "2"}))
        assert made.created_at and on.images.get(A, "i") == made
        with pytest.raises(errors.AlreadyExists):
            on.images.create(A, Image("i", TARGET))
        with pytest.raises(errors.NotFound):
            on.images.get(B, "i")
        for bad in (Image("", TARGET), Image("x", Descriptor("t", "nonsense", 1))):
            with pytest.raises(errors.InvalidArgument):
                on.images.create(A, bad)
        changed = on.images.update(A, Image("i", OTHER, {"a": "9"}), ["target"])
        assert (changed.target.digest, changed.labels) == (OTHER.digest, {"a": "1", "b": "2"})
        changed = on.images.update(A, Image("i", OTHER, {"a": "9"}), ["labels.a", "labels.b"])
        assert changed.labels == {"a": "9"}
        with pytest.raises(errors.InvalidArgument):
            on.images.update(A, Image("i", OTHER), ["name"])
        changed = on.images.update(A, Image("i", TARGET, {"n": "1"}))
        assert (changed.target, changed.labels, changed.created_at) == (TARGET, {"n": "1"}, made.created_at)
        with pytest.raises(errors.NotFound):
            on.images.update(A, Image("none", TARGET))
        assert on.images.list(A, [f"target.digest=={TARGET.digest}"]) == [changed]
        assert on.images.list(A, ["name==j"]) == []
        with pytest.raises(errors.NotFound):
            on.images.delete(A, "i", OTHER.digest)
        on.images.delete(A, "i", TARGET.digest)
        with pytest.raises(errors.NotFound):
            on.images.delete(A, "i")
        assert [topic for _, topic in on.events.seen][:2] == ["/images/create", "/images/update"]
        assert on.events.seen[-1] == ("a", "/images/delete")

    run(tmp_path, body)


def test_containers(tmp_path: Path) -> None:
    def body(on: Rooms) -> None:
        made = on.containers.create(A, container())
        assert made.HasField("created_at") and dict(made.labels) == {"k": "v"}
        assert on.containers.get(A, "c") == made
        with pytest.raises(errors.AlreadyExists):
            on.containers.create(A, container())
        for bad in (container("../x"), container("d", snapshot_key="k"), Container(id="e")):
            with pytest.raises(errors.InvalidArgument):
                on.containers.create(A, bad)
        change = container(snapshotter="overlayfs", snapshot_key="new")
        with pytest.raises(errors.InvalidArgument):
            on.containers.update(A, change)
        change = container()
        change.labels.update({"n": "1"})
        change.extensions["x"].type_url = "t"
        changed = on.containers.update(A, change, ["labels.n", "extensions.x"])
        assert dict(changed.labels) == {"k": "v", "n": "1"} and "x" in changed.extensions
        assert changed.created_at == made.created_at
        with pytest.raises(errors.InvalidArgument):
            on.containers.update(A, change, ["runtime"])
        assert [c.id for c in on.containers.list(A, ["labels.n==1"])] == ["c"]
        assert on.containers.list(A, ["image==other"]) == on.containers.list(B) == []
        on.containers.delete(A, "c")
        with pytest.raises(errors.NotFound):
            on.containers.delete(A, "c")

    run(tmp_path, body)


def test_leases(tmp_path: Path) -> None:
    def body(on: Rooms) -> None:
        lease = on.leases.create(A, "", {"k": "v"})
        assert lease.id and on.leases.list(A, ["labels.k==v"]) == [lease] and on.leases.list(B) == []
        with pytest.raises(errors.AlreadyExists):
            on.leases.create(A, lease.id)
        for resource in (Resource("d", "content"), Resource("k", "snapshots/overlayfs"), Resource("r", "ingests")):
            on.leases.add_resource(A, lease.id, resource)
            on.leases.add_resource(A, lease.id, resource)
        assert len(on.leases.resources(A, lease.id)) == 3
        on.leases.delete_resource(A, lease.id, Resource("d", "content"))
        assert len(on.leases.resources(A, lease.id)) == 2
        with pytest.raises(errors.Unimplemented):
            on.leases.add_resource(A, lease.id, Resource("x", "nonsense"))
        with pytest.raises(errors.NotFound):
            on.leases.add_resource(A, "none", Resource("d", "content"))
        on.leases.delete(A, lease.id)
        with pytest.raises(errors.NotFound):
            on.leases.resources(A, lease.id)

    run(tmp_path, body)


def test_namespaces(tmp_path: Path) -> None:
    def body(on: Rooms) -> None:
        on.namespaces.create("a", {"k": "v"})
        with pytest.raises(errors.AlreadyExists):
            on.namespaces.create("a", {})
        assert on.namespaces.update("a", {"n": "1", "k": ""}, ["labels.n", "labels.k"]).labels == {"n": "1"}
        on.images.create(B, Image("i", TARGET))
        assert [one.name for one in on.namespaces.list()] == ["a", "b"]
        with pytest.raises(errors.FailedPrecondition, match="images"):
            on.namespaces.delete("b")
        on.images.delete(B, "i")
        on.namespaces.delete("b")
        on.namespaces.delete("a")
        with pytest.raises(errors.NotFound):
            on.namespaces.delete("a")
        on.images.create(B, Image("i", TARGET))
        assert [one.name for one in on.namespaces.list()] == ["b"], "it comes back with its first object"

    run(tmp_path, body)


def test_sandboxes(tmp_path: Path) -> None:
    def sandbox(id: str = "s", **fields: object) -> Sandbox:
        made = Sandbox(sandbox_id=id, **{"labels": {"k": "v"}, **fields})  # type: ignore[arg-type]  # test data
        made.runtime.name = made.runtime.name or "io.containerd.py.v2"
        return made

    def body(on: Rooms) -> None:
        store = Sandboxes(on.database)
        made = store.create(A, sandbox())
        assert made.HasField("created_at") and store.get(A, "s") == made
        with pytest.raises(errors.AlreadyExists):
            store.create(A, sandbox())
        with pytest.raises(errors.NotFound):
            store.get(B, "s")
        for bad in (sandbox("../x"), Sandbox(sandbox_id="e")):
            with pytest.raises(errors.InvalidArgument):
                store.create(A, bad)
        change = sandbox(labels={"k": "w"})
        change.extensions["e"].type_url = "t"
        changed = store.update(A, change, ["labels.k", "extensions.e"])
        assert (dict(changed.labels), changed.extensions["e"].type_url) == ({"k": "w"}, "t")
        assert changed.created_at == made.created_at
        with pytest.raises(errors.InvalidArgument):
            store.update(A, change, ["created_at"])
        with pytest.raises(errors.NotFound):
            store.update(A, sandbox("none"))
        assert store.list(A, ["labels.k==w"]) == [changed]
        assert store.list(A, ["runtime.name==other"]) == []
        assert store.list(B) == []
        store.delete(A, "s")
        with pytest.raises(errors.NotFound):
            store.delete(A, "s")

    run(tmp_path, body)
