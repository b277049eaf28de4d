"""Pushes through a proxy that cuts uploads or takes only small requests: what the registry has is not sent again."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from containerd_py.transfer import push
from tests.integration.transfer.test_pull_push_archives import Daemon, image_archive
from tests.support.fake_registry import FakeRegistry
from tests.support.registry import running_registry

SIZE = 3_000_000


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


class UploadProxy:
    """Forwards connections; request bodies are cut after ``cut_after`` bytes ``cuts`` times, or limited in size."""

    def __init__(self, target: str) -> None:
        self.host, _, port = target.partition(":")
        self.port = int(port)
        self.cuts = 0
        self.cut_after = 1_000_000
        self.largest = 1 << 40
        self.body_bytes = 0
        self.bodies = 0
        self.address = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[UploadProxy]:
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            size = int(length[1]) if length else 0
            if head.startswith(b"PATCH") and size > self.largest:
                writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                await writer.drain()
            else:
                await self._forward(head, size, reader, writer)
        writer.close()

    async def _forward(
        self, head: bytes, size: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        source, sink = await asyncio.open_connection(self.host, self.port)
        sink.write(re.sub(rb"\r\n(?i:connection): [^\r]*", b"", head)[:-2] + b"Connection: close\r\n\r\n")
        left = size
        patch = head.startswith(b"PATCH")
        self.bodies += patch
        while left and (data := await reader.read(min(left, 65536))):
            left -= len(data)
            sink.write(data)
            await sink.drain()
            self.body_bytes += len(data) if patch else 0
            if patch and self.cuts and size - left >= self.cut_after:
                self.cuts -= 1
                await asyncio.sleep(0.2)  # let the registry have what was sent
                sink.close()
                return
        while data := await source.read(65536):
            writer.write(data)
            await writer.drain()
        sink.close()


def pushing(tmp_path: Path, registry: str, name: str, proxy: UploadProxy) -> None:
    image_archive(tmp_path / "app.tar", seed=len(name) * 7, layers=1, size=SIZE)

    async def run() -> None:
        daemon, second = Daemon(tmp_path / "a"), Daemon(tmp_path / "b")
        await daemon.load(tmp_path / "app.tar")
        async with proxy.running():
            digest = await daemon.push("docker.io/library/app:v1", f"{proxy.address}/{name}:v1")
        assert await second.pull(f"{registry}/{name}:v1") == digest
        for one in (daemon, second):
            await one.transfers.close()

    asyncio.run(run())


def test_a_cut_upload_ends_right(tmp_path: Path, registry: str) -> None:
    proxy = UploadProxy(registry)  # this registry forgets what a broken request brought
    proxy.cuts = 2
    pushing(tmp_path, registry, "cutup", proxy)
    assert proxy.cuts == 0


def test_a_cut_upload_goes_on_where_it_stopped(tmp_path: Path) -> None:
    image_archive(tmp_path / "app.tar", seed=9, layers=1, size=SIZE)

    async def run() -> None:
        daemon, registry = Daemon(tmp_path / "a"), FakeRegistry()
        registry.cut_uploads = 2
        await daemon.load(tmp_path / "app.tar")
        async with registry.running() as address:
            await daemon.push("docker.io/library/app:v1", f"{address}/app:v1")
        assert registry.cut_uploads == 0
        starts = [one.headers.get("Content-Range", "") for one in registry.seen if one.method == "PATCH"]
        assert sum(bool(start) for start in starts) == 2
        assert len(registry.uploads) == 2  # one for the config, one for the layer: none was begun again
        await daemon.transfers.close()

    asyncio.run(run())


def test_a_proxy_that_takes_small_requests_gets_pieces(
    tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "CHUNK", 1 << 20)
    proxy = UploadProxy(registry)
    proxy.largest = 1 << 20
    pushing(tmp_path, registry, "pieces", proxy)
    assert proxy.bodies >= 3
    assert proxy.body_bytes < SIZE + 100_000
