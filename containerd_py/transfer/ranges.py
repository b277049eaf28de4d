"""One large blob over several connections, its bytes given in order.

Rule: the first range tells whether the registry serves ranges; where it does not, its answer is the whole blob and
nothing was lost by asking. A range that is cut goes on from where it was by itself, so that no other is fetched twice.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from containerd_py.registry.client import Patience, Retrying
from containerd_py.registry.repository import Download
from oci.errors import DataLoss, DeadlineExceeded, Unavailable
from oci.image import Descriptor

LARGE = 24 << 20
"""Bytes still missing from which a blob is fetched in ranges."""
PART = 4 << 20
AHEAD = 3
"""Ranges fetched beside the one that is being read: what of them has arrived is held in memory."""


class BlobSource(Protocol):
    """Where blobs come from: ``registry.Repository``."""

    def blob(
        self, descriptor: Descriptor, offset: int = 0, on_retry: Retrying | None = None, length: int = 0
    ) -> AbstractAsyncContextManager[Download]: ...


@contextlib.asynccontextmanager
async def ranged(
    source: BlobSource, blob: Descriptor, offset: int, on_retry: Retrying, patience: Patience
) -> AsyncIterator[Download]:
    """The bytes of ``blob`` from ``offset`` on as ``source.blob`` gives them; over several connections if large."""
    if blob.size - offset < LARGE:
        async with source.blob(blob, offset, on_retry) as download:
            yield download
        return
    async with source.blob(blob, offset, on_retry, PART) as first:
        if not first.partial or first.offset != offset:
            yield first
            return
        parts = _Parts(source, blob, offset + PART, on_retry, patience)
        try:
            yield Download(offset, _joined(first, offset, parts))
        finally:
            await parts.stop()


async def _joined(first: Download, offset: int, parts: _Parts) -> AsyncIterator[bytes]:
    parts.fill()
    got = 0
    with contextlib.suppress(Unavailable, DeadlineExceeded):
        async for piece in first.pieces:
            got += len(piece)
            if got > PART:
                raise DataLoss("the registry sends more than the range it was asked for")
            yield piece
    if got < PART:
        yield await parts.part(offset + got, PART - got)
    while (data := await parts.next()) is not None:
        yield data


class _Parts:
    """The ranges behind the first one, some of them on their way."""

    def __init__(
        self, source: BlobSource, blob: Descriptor, start: int, on_retry: Retrying, patience: Patience
    ) -> None:
        self._source = source
        self._blob = blob
        self._at = start
        self._on_retry = on_retry
        self._patience = patience
        self._running: collections.deque[asyncio.Task[bytes]] = collections.deque()

    def fill(self) -> None:
        """Have as many ranges under way as may be."""
        while len(self._running) < AHEAD and self._at < self._blob.size:
            length = min(PART, self._blob.size - self._at)
            self._running.append(asyncio.create_task(self.part(self._at, length)))
            self._at += length

    async def next(self) -> bytes | None:
        """The next range's bytes; None at the end of the blob."""
        if not self._running:
            return None
        data = await self._running[0]
        self._running.popleft()
        self.fill()
        return data

    async def stop(self) -> None:
        """Drop what is under way."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def part(self, start: int, length: int) -> bytes:
        """One range; what was cut is asked for from the cut on."""
        data = bytearray()
        failures = 0
        while len(data) < length:
            before = len(data)
            try:
                await self._some(data, start, length)
            except (Unavailable, DeadlineExceeded):
                failures = 1 if len(data) > before else failures + 1
                if failures >= self._patience.tries:
                    raise
                seconds = self._patience.wait(failures - 1)
                self._on_retry(seconds)
                await asyncio.sleep(seconds)
        return bytes(data)

    async def _some(self, data: bytearray, start: int, length: int) -> None:
        at = start + len(data)
        async with self._source.blob(self._blob, at, self._on_retry, length - len(data)) as download:
            if not download.partial or download.offset != at:
                raise Unavailable(f"blob {self._blob.digest}: the registry no longer serves ranges")
            async for piece in download.pieces:
                data += piece
                if len(data) > length:
                    raise DataLoss(f"blob {self._blob.digest}: the registry sends more than the range it was asked for")
        if len(data) < length:
            raise Unavailable(f"blob {self._blob.digest}: the registry ended a range early")
