"""A proxy before a real registry that cuts, corrupts and limits: a pull ends right or with a clear error."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from oci.errors import DataLoss, GantryError
from tests.integration.transfer.test_pull_push_archives import SCOPE, Daemon, image_archive
from tests.support.registry import running_registry

TLS_HANDSHAKE = b"\x16"
"""The type of a record, RFC 8446, section 5.1: what a client that speaks TLS begins with."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


class Proxy:
    """Forwards connections; blob answers are cut after ``cut_after`` bytes ``cuts`` times, or corrupted."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.cuts = 0
        self.cut_after = 100_000
        self.corrupt = False
        self.limits = 0
        self.delay = 0.0
        """Seconds before each 16 KiB of a blob."""
        self.blob_bytes = 0
        self.address = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What a client has not read yet when it goes away is little, however busy the machine is.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        writer.transport.set_write_buffer_limits(16384)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readexactly(1)
            if head == TLS_HANDSHAKE:  # as a server of plain HTTP has it: whoever asks for TLS need not wait
                writer.close()
                return
            head += await reader.readuntil(b"\r\n\r\n")
            if self.limits:
                self.limits -= 1
                limited = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 0\r\n"
                writer.write(limited + b"Connection: close\r\n\r\n")
            else:
                await self._forward(head, writer)
            await writer.drain()
        writer.close()

    async def _forward(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.split(":")
        source, sink = await asyncio.open_connection(host, int(port))
        sink.write(re.sub(rb"\r\n(?i:connection): [^\r]*", b"", head)[:-2] + b"Connection: close\r\n\r\n")
        answer = await source.readuntil(b"\r\n\r\n")
        writer.write(answer)
        blob = b"/blobs/" in head.split(b"\r\n")[0]
        sent = 0
        while data := await source.read(16384):
            if blob and self.delay:
                await asyncio.sleep(self.delay)
            if blob and self.corrupt:
                data = bytes([data[0] ^ 1]) + data[1:]
            if blob and self.cuts and sent + len(data) > self.cut_after:
                self.cuts -= 1
                break
            writer.write(data)
            await writer.drain()
            sent += len(data)
            if blob:
                self.blob_bytes += len(data)
        sink.close()


async def pushed(base: Path, registry: str, name: str, seed: int) -> int:
    """Push an image; the bytes of its blobs without the manifest."""
    image_archive(base / "app.tar", seed=seed)
    daemon = Daemon(base / "origin")
    await daemon.load(base / "app.tar")
    await daemon.push("docker.io/library/app:v1", f"{registry}/{name}:v1")
    await daemon.transfers.close()
    manifest = daemon.images.get(SCOPE, "docker.io/library/app:v1").target
    return sum(one.size for one in daemon.content.walk(SCOPE)) - manifest.size


def test_cuts_are_resumed_and_only_missing_bytes_are_fetched(tmp_path: Path, registry: str) -> None:
    async def run() -> None:
        total = await pushed(tmp_path, registry, "cuts", random.randrange(1 << 30))
        async with Proxy(registry).running() as proxy:
            proxy.cuts = 5
            daemon = Daemon(tmp_path / "a")
            await daemon.pull(f"{proxy.address}/cuts:v1")
            assert proxy.cuts == 0
            assert total <= proxy.blob_bytes <= total + 5 * 65536  # what a cut caught on the wire may come twice
            assert "retrying" in {event.event for event in daemon.events}
            await daemon.transfers.close()

    asyncio.run(run())


def test_a_pull_that_gave_up_goes_on_where_it_stopped(tmp_path: Path, registry: str) -> None:
    async def run() -> None:
        total = await pushed(tmp_path, registry, "gaveup", random.randrange(1 << 30))
        async with Proxy(registry).running() as proxy:
            daemon = Daemon(tmp_path / "a")
            proxy.cuts, proxy.cut_after = 10_000, 0
            with pytest.raises(GantryError):
                await daemon.pull(f"{proxy.address}/gaveup:v1")
            proxy.cuts, proxy.cut_after = 3, 250_000
            pull = asyncio.create_task(daemon.pull(f"{proxy.address}/gaveup:v1"))
            while proxy.blob_bytes < total // 3:  # noqa: ASYNC110 - the proxy only counts
                await asyncio.sleep(0.005)
            pull.cancel()
            await asyncio.wait([pull])
            await daemon.collector.collect()
            proxy.cuts = 0
            await daemon.pull(f"{proxy.address}/gaveup:v1")
            assert proxy.blob_bytes <= total + 8 * 65536
            await daemon.transfers.close()

    asyncio.run(run())


def test_corrupt_blobs_are_never_stored(tmp_path: Path, registry: str) -> None:
    async def run() -> None:
        await pushed(tmp_path, registry, "corrupt", 77)
        async with Proxy(registry).running() as proxy:
            proxy.corrupt = True
            daemon = Daemon(tmp_path / "a")
            with pytest.raises(DataLoss, match="another digest"):
                await daemon.pull(f"{proxy.address}/corrupt:v1")
            await daemon.collector.collect()
            assert daemon.content.walk(SCOPE) == []
            assert daemon.images.list(SCOPE) == []
            proxy.corrupt = False
            await daemon.pull(f"{proxy.address}/corrupt:v1")
            await daemon.transfers.close()

    asyncio.run(run())


def test_rate_limit_is_waited_for(tmp_path: Path, registry: str) -> None:
    async def run() -> None:
        await pushed(tmp_path, registry, "limits", 78)
        async with Proxy(registry).running() as proxy:
            proxy.limits = 2
            daemon = Daemon(tmp_path / "a")
            await daemon.pull(f"{proxy.address}/limits:v1")
            await daemon.transfers.close()

    asyncio.run(run())


def test_two_pulls_fetch_once(tmp_path: Path, registry: str) -> None:
    async def run() -> None:
        total = await pushed(tmp_path, registry, "twice", 79)
        async with Proxy(registry).running() as proxy:
            daemon = Daemon(tmp_path / "a")
            reference = f"{proxy.address}/twice:v1"
            await asyncio.gather(daemon.pull(reference), daemon.pull(reference))
            assert proxy.blob_bytes == total
            await daemon.transfers.close()

    asyncio.run(run())
