"""Pull, push, import and export between real stores and a real docker-registry, skopeo as the witness."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import random
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from containerd_py.content.store import Content
from containerd_py.exchange import LocalExchange
from containerd_py.gc.collector import GarbageCollector
from containerd_py.interfaces import Scope
from containerd_py.metadata.database import Database
from containerd_py.metadata.images import Images
from containerd_py.metadata.leases import Leases
from containerd_py.registry.client import Patience
from containerd_py.registry.hosts import RegistryConfig
from containerd_py.transfer.model import Destination, Event, ExtraName, Stores
from containerd_py.transfer.transfers import Transfers
from oci.errors import DataLoss, GantryError, NotFound, Unavailable
from tests.support.registry import running_registry

SCOPE = Scope("test")
QUICK = Patience(connect=2, silence=2, tries=3, first_wait=0.05, longest_wait=0.2)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


def image_archive(path: Path, seed: int = 1, layers: int = 3, size: int = 300_000) -> None:
    """A ``docker save`` archive with layers of random files."""
    blobs: list[bytes] = []
    for number in range(layers):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            entry = tarfile.TarInfo(f"file{number}")
            entry.size = size
            tar.addfile(entry, io.BytesIO(random.Random(seed * 100 + number).randbytes(size)))
        blobs.append(out.getvalue())
    diffs = ["sha256:" + hashlib.sha256(blob).hexdigest() for blob in blobs]
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diffs}}
    manifest = [{"Config": "c.json", "RepoTags": ["app:v1"], "Layers": [f"{n}/layer.tar" for n in range(layers)]}]
    with tarfile.open(path, "w") as tar:
        files = [(f"{n}/layer.tar", blob) for n, blob in enumerate(blobs)]
        files += [("c.json", json.dumps(config).encode()), ("manifest.json", json.dumps(manifest).encode())]
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


async def pieces_of(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 100_000):
        yield data[at : at + 100_000]


class Daemon:
    """Stores in a directory and the transfers upon them."""

    def __init__(self, base: Path, patience: Patience = QUICK) -> None:
        exchange = LocalExchange()
        base.mkdir()
        self.database = Database(str(base / "meta.db"))
        self.collector = GarbageCollector(self.database, exchange)
        self.content = Content(self.database, str(base / "content"), exchange, self.collector)
        self.collector.attach(self.content, {})
        self.images = Images(self.database, exchange, self.collector)
        self.leases = Leases(self.database, self.collector)
        stores = Stores(self.content, self.images, self.leases, None, self.database.flushed)
        self.transfers = Transfers(stores, RegistryConfig(directories=()), patience)
        self.events: list[Event] = []

    async def load(self, path: Path, destination: Destination | None = None) -> list[str]:
        found = await self.transfers.import_archive(
            SCOPE, pieces_of(path.read_bytes()), destination or Destination(), self.events.append
        )
        return [name for name, _ in found]

    async def save(self, *names: str) -> bytes:
        return b"".join([piece async for piece in self.transfers.export_archive(SCOPE, names)])

    async def pull(self, reference: str) -> str:
        repository = self.transfers.repository(reference)
        return (await self.transfers.pull(SCOPE, repository, Destination(), self.events.append)).digest

    async def push(self, name: str, reference: str) -> str:
        repository = self.transfers.repository(reference)
        return (await self.transfers.push(SCOPE, name, repository, (), self.events.append)).digest


def skopeo(*arguments: str) -> str:
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_archive_to_registry_and_back(tmp_path: Path, registry: str) -> None:
    archive = tmp_path / "app.tar"
    image_archive(archive)

    async def run() -> None:
        first, second = Daemon(tmp_path / "a"), Daemon(tmp_path / "b")
        assert await first.load(archive) == ["docker.io/library/app:v1"]
        pushed = await first.push("docker.io/library/app:v1", f"{registry}/app:v1")
        listed = await asyncio.to_thread(skopeo, "inspect", "--tls-verify=false", f"docker://{registry}/app:v1")
        assert json.loads(listed)["Digest"] == pushed
        assert await second.pull(f"{registry}/app:v1") == pushed
        assert [one.digest for one in second.content.walk(SCOPE)] == [one.digest for one in first.content.walk(SCOPE)]
        await second.collector.collect()
        assert len(second.content.walk(SCOPE)) == 5
        exported = await second.save(f"{registry}/app:v1")
        assert exported == await second.save(f"{registry}/app:v1")
        (tmp_path / "out.tar").write_bytes(exported)
        for kind in ("docker-archive", "oci-archive"):
            await asyncio.to_thread(skopeo, "copy", f"{kind}:{tmp_path}/out.tar", f"dir:{tmp_path}/{kind}")
        for daemon in (first, second):
            await daemon.transfers.close()

    asyncio.run(run())


def test_second_push_sends_nothing_and_other_repository_mounts(tmp_path: Path, registry: str) -> None:
    archive = tmp_path / "app.tar"
    image_archive(archive, seed=2)

    async def run() -> None:
        daemon = Daemon(tmp_path / "a")
        await daemon.load(archive)
        await daemon.push("docker.io/library/app:v1", f"{registry}/one:v1")
        daemon.events.clear()
        await daemon.push("docker.io/library/app:v1", f"{registry}/one:v2")
        assert {event.event for event in daemon.events} == {"waiting", "exists", "saved"}
        daemon.events.clear()
        await daemon.push("docker.io/library/app:v1", f"{registry}/two:v1")
        assert {event.event for event in daemon.events} == {"waiting", "mounted", "saved"}
        await daemon.transfers.close()

    asyncio.run(run())


def test_unknown_image_and_dead_registry(tmp_path: Path, registry: str) -> None:
    async def run() -> None:
        daemon = Daemon(tmp_path / "a")
        with pytest.raises(NotFound, match="manifest unknown"):
            await daemon.pull(f"{registry}/nothing:here")
        with pytest.raises(Unavailable, match="connection refused"):
            await daemon.pull("127.0.0.1:1/app:v1")
        await daemon.transfers.close()

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["cut", "flipped", "no tar"])
def test_damaged_archive_leaves_nothing(tmp_path: Path, damage: str) -> None:
    archive = tmp_path / "app.tar"
    image_archive(archive, seed=3)
    data = bytearray(archive.read_bytes())
    if damage == "cut":
        del data[500_000:]
    elif damage == "flipped":
        data[200_000] ^= 1
    else:
        data = bytearray(b"nonsense" * 1000)
    archive.write_bytes(data)

    async def run() -> None:
        daemon = Daemon(tmp_path / "a")
        with pytest.raises(GantryError) as caught:
            await daemon.load(archive)
        assert isinstance(caught.value, DataLoss) or damage == "no tar"
        await daemon.collector.collect()
        assert daemon.content.walk(SCOPE) == []
        assert daemon.content.statuses(SCOPE) == []
        assert daemon.images.list(SCOPE) == []

    asyncio.run(run())


def test_compressed_archive_and_names(tmp_path: Path) -> None:
    archive = tmp_path / "app.tar"
    image_archive(archive, seed=4)
    (tmp_path / "app.tgz").write_bytes(gzip.compress(archive.read_bytes(), 1))

    async def run() -> None:
        daemon = Daemon(tmp_path / "a")
        everything = Destination(extra=[ExtraName("", prefix=True, overwrite=True)])
        assert await daemon.load(tmp_path / "app.tgz", everything) == ["docker.io/library/app:v1"]

    asyncio.run(run())
