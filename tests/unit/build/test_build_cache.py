"""The cache: what is kept and what is let go of, with a containerd of dictionaries."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from engine.build.cache import BuildCache, Entry, Prune, key_of
from engine.store import Store
from oci.image import Descriptor


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def whole(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return whole


class Leases:
    """One lease's resources, as containerd's leases service."""

    def __init__(self) -> None:
        self.held: list[Any] = []

    async def Create(self, request: Any) -> None: ...

    async def Delete(self, request: Any) -> None: ...

    async def ListResources(self, request: Any) -> Any:
        return type("Answer", (), {"resources": list(self.held)})

    async def DeleteResource(self, request: Any) -> None:
        self.held = [resource for resource in self.held if resource.id != request.resource.id]


class Backend:
    """As much of the backend as the cache uses."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.backend = self
        self.questions = 0

    def with_lease(self, lease: str) -> tuple[tuple[str, str], ...]:
        return (("containerd-lease", lease),)

    async def blob_sizes(self) -> dict[str, int]:
        self.questions += 1
        return {resource.id: 1 for resource in self.leases.held}

    async def has(self, digest: str) -> bool:
        self.questions += 1
        return any(resource.id == digest for resource in self.leases.held)

    def hold(self, *ids: str) -> None:
        from protos.containerd import leases_pb2

        self.leases.held += [leases_pb2.Resource(id=i, type="content") for i in ids]

    @property
    def ids(self) -> set[str]:
        return {resource.id for resource in self.leases.held}


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def cache(backend: Backend) -> BuildCache:
    return BuildCache(Store(":memory:"), backend)  # type: ignore[arg-type] # a stand-in


def entry(name: str) -> Entry:
    return Entry(key=key_of(name), description=name, created="", blob=Descriptor("", f"blob-{name}", 10), diff_id=name)


def filled(cache: BuildCache, backend: Backend, *names: str) -> None:
    for name in names:
        backend.hold(f"blob-{name}")
        cache.put(entry(name))


def test_keys_tell_lists_and_texts_apart() -> None:
    keys = {key_of("a", "b"), key_of(["a", "b"]), key_of("ab"), key_of(["a"], ["b"]), key_of("a", ["b"]), key_of("a;b")}
    assert len(keys) == 6


@run
async def test_an_entry_without_its_layer_is_forgotten(cache: BuildCache, backend: Backend) -> None:
    cache.put(entry("gone"))
    assert await cache.get(key_of("gone")) is None
    assert cache.entries() == []


@run
async def test_uses_are_counted(cache: BuildCache, backend: Backend) -> None:
    filled(cache, backend, "a")
    await cache.get(key_of("a"))
    found = await cache.get(key_of("a"))
    assert found is not None and found.uses == 2 and found.used_at >= found.made_at


@run
async def test_prune_lets_go_of_layers_and_of_snapshots_that_stand_on_them(cache: BuildCache, backend: Backend) -> None:
    filled(cache, backend, "a", "b")
    backend.hold("chain-a", "chain-a-b", "chain-b", "left-behind")
    cache.note_snapshot("chain-a", "base", "a")
    cache.note_snapshot("chain-a-b", "chain-a", "b")
    cache.note_snapshot("chain-b", "base", "b")
    gone = await cache.prune(Prune(ids=(key_of("a")[:12],)))
    assert [e.description for e in gone] == ["a"]
    assert backend.ids == {"blob-b", "chain-b"}


@run
async def test_what_a_build_relies_on_stays_until_it_is_over(cache: BuildCache, backend: Backend) -> None:
    filled(cache, backend, "a", "b")
    async with cache.session() as session:
        await session.get(key_of("a"))
        session.put(entry("fresh"))
        backend.hold("blob-fresh", "not yet known")
        assert [e.description for e in await cache.prune(Prune())] == ["b"]
        assert "blob-b" in backend.ids and "not yet known" in backend.ids
    assert backend.ids == {"blob-a", "blob-fresh"}
    assert len(await cache.prune(Prune())) == 2
    assert backend.ids == set()


@run
async def test_a_build_asks_once_and_writes_once(cache: BuildCache, backend: Backend) -> None:
    filled(cache, backend, "a", "b", "c")
    async with cache.session() as session:
        for name in ("a", "b", "a", "c"):
            assert await session.get(key_of(name)) is not None
        assert backend.questions == 1
        filled(cache, backend, "later")
        assert await session.get(key_of("later")) is not None
        cache.put(entry("lost"))
        assert await session.get(key_of("lost")) is None
        assert [e.uses for e in cache.entries()] == [0] * 4
    assert {e.description: e.uses for e in cache.entries()} == {"a": 1, "b": 1, "c": 1, "later": 1}


@run
async def test_a_failed_build_leaves_nothing(cache: BuildCache, backend: Backend) -> None:
    with contextlib.suppress(ValueError):
        async with cache.session():
            backend.hold("half")
            cache.note_failure()
            raise ValueError
    assert backend.ids == set()


@run
async def test_prune_by_time_and_by_size(cache: BuildCache, backend: Backend) -> None:
    filled(cache, backend, "a", "b", "c")
    assert [e.description for e in await cache.prune(Prune(keep=20))] == ["a"]
    assert await cache.prune(Prune(used_before=1)) == []
    assert len(await cache.prune(Prune(used_before=1 << 62))) == 2


@run
async def test_entries_outlive_the_daemon(backend: Backend) -> None:
    store = Store(":memory:")
    first = BuildCache(store, backend)  # type: ignore[arg-type] # a stand-in
    filled(first, backend, "a")
    first.note_snapshot("chain", "", "a")
    backend.hold("chain", "half")
    second = BuildCache(store, backend)  # type: ignore[arg-type] # a stand-in
    await second.start()
    assert await second.get(key_of("a")) is not None
    assert backend.ids == {"blob-a", "chain"}
