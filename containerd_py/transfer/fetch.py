"""Blobs from a registry into the content store: once per digest whoever asks, resumed where they were cut.

Rule: bytes that were stored are not fetched again, bytes that do not hash to their digest never become a blob, and a
blob is on the caller's lease before its first byte is asked for. The ingest itself is on no lease: it outlives a
cancelled pull by a day, so that the next one goes on where this one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from containerd_py.interfaces import ContentStore, ContentWriter, LeaseStore, Resource, Scope
from containerd_py.registry.client import Patience
from containerd_py.transfer import graph
from containerd_py.transfer.model import Event, Report
from containerd_py.transfer.ranges import BlobSource, ranged
from oci.errors import (
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    GantryError,
    NotFound,
    Unavailable,
)
from oci.image import Descriptor

T = TypeVar("T")

REPORT_EVERY = 0.1
"""Seconds between two events about the same blob's bytes."""
CORRUPT_TRIES = 2
BUSY_WAIT = 0.2


def ingest_ref(descriptor: Descriptor) -> str:
    """The name of a blob's ingest, as containerd's clients name it."""
    if graph.is_index(descriptor):
        kind = "index"
    elif graph.is_manifest(descriptor):
        kind = "manifest"
    elif graph.is_layer(descriptor):
        kind = "layer"
    else:
        kind = (
            "config" if "config" in descriptor.media_type or "container.image" in descriptor.media_type else "unknown"
        )
    return f"{kind}-{descriptor.digest}"


async def in_thread(call: Callable[..., T], *arguments: object) -> T:
    """``call`` in a thread, to its end even when we are cancelled: the writer must not be closed under it."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


class _Flight:
    """One blob on its way, and those who wait for it."""

    def __init__(self) -> None:
        self.listeners: list[Report] = []
        self.task: asyncio.Task[None] | None = None

    def say(self, event: Event) -> None:
        for listener in tuple(self.listeners):
            listener(event)


class Fetcher:
    """Fetches blobs. One per daemon, on its event loop."""

    def __init__(self, content: ContentStore, leases: LeaseStore, patience: Patience | None = None) -> None:
        self._content = content
        self._leases = leases
        self._patience = patience or Patience()
        self._flights: dict[tuple[str, str], _Flight] = {}

    async def fetch(self, scope: Scope, blob: Descriptor, source: BlobSource, report: Report) -> None:
        """Have ``blob`` in the store and on ``scope``'s lease. Raises what ended the last try."""
        hold(self._leases, scope, blob.digest)
        if graph.has(self._content, scope, blob.digest):
            report(Event("exists", blob.digest, blob.size, blob.size, blob))
            return
        key = (scope.namespace, blob.digest)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.create_task(self._fly(Scope(scope.namespace), blob, source, flight))
            flight.task.add_done_callback(lambda task: self._landed(key, task))
        flight.listeners.append(report)
        assert flight.task is not None
        try:
            await asyncio.shield(flight.task)
        finally:
            flight.listeners.remove(report)
            if not flight.listeners and not flight.task.done():
                self._flights.pop(key, None)
                flight.task.cancel()
                await asyncio.wait([flight.task])

    def _landed(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        flight = self._flights.get(key)
        if flight is not None and flight.task is task:
            del self._flights[key]
        if not task.cancelled():
            task.exception()  # seen by whoever waited, or by nobody because they all left

    async def _fly(self, scope: Scope, blob: Descriptor, source: BlobSource, flight: _Flight) -> None:
        flight.say(Event("downloading", blob.digest, 0, blob.size, blob))
        with contextlib.suppress(AlreadyExists):
            writer = await self._writer(scope, blob)
            try:
                await self._whole(scope, blob, source, writer, flight.say)
            finally:
                await in_thread(writer.close)
        flight.say(Event("downloaded", blob.digest, blob.size, blob.size, blob))

    async def _writer(self, scope: Scope, blob: Descriptor) -> ContentWriter:
        """The blob's ingest; waits while somebody else (another client) writes it."""
        deadline = time.monotonic() + self._patience.silence
        while True:
            try:
                return await in_thread(self._content.writer, scope, ingest_ref(blob), blob.size, blob.digest)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(BUSY_WAIT)

    async def _whole(
        self, scope: Scope, blob: Descriptor, source: BlobSource, writer: ContentWriter, say: Report
    ) -> None:
        for attempt in range(CORRUPT_TRIES):
            if writer.offset > blob.size:
                await in_thread(writer.truncate, 0)
            await self._bytes(blob, source, writer, say)
            try:
                await in_thread(writer.commit, blob.size, blob.digest)
                return
            except FailedPrecondition as error:
                # The ingest is worthless; keep nothing of it, and believe in an accident once.
                await in_thread(writer.truncate, 0)
                if attempt + 1 == CORRUPT_TRIES:
                    await in_thread(writer.close)
                    with contextlib.suppress(NotFound):
                        self._content.abort(scope, writer.ref)
                    raise DataLoss(
                        f"blob {blob.digest}: the registry sent bytes with another digest ({error.message})",
                        hint="the image is damaged at the registry or on the way; push it again or check the proxy",
                    ) from error

    async def _bytes(self, blob: Descriptor, source: BlobSource, writer: ContentWriter, say: Report) -> None:
        """Fill ``writer`` up to the blob's size."""
        failures = 0
        while writer.offset < blob.size:
            before = writer.offset
            try:
                await self._some(blob, source, writer, say)
                if writer.offset < blob.size:
                    raise Unavailable(
                        f"blob {blob.digest}: the registry ended after {writer.offset} of {blob.size} bytes"
                    )
            except (Unavailable, DeadlineExceeded) as error:
                failures = 1 if writer.offset > before else failures + 1
                if failures >= self._patience.tries:
                    raise
                await self._pause(blob, failures - 1, error, say)

    async def _pause(self, blob: Descriptor, failures: int, _error: GantryError, say: Report) -> None:
        seconds = self._patience.wait(failures)
        say(Event("retrying", blob.digest, max(1, round(seconds)), 0, blob))
        await asyncio.sleep(seconds)

    async def _some(self, blob: Descriptor, source: BlobSource, writer: ContentWriter, say: Report) -> None:
        """Bytes of one connection, appended as they come."""

        def retrying(seconds: float) -> None:
            say(Event("retrying", blob.digest, max(1, round(seconds)), 0, blob))

        async with ranged(source, blob, writer.offset, retrying, self._patience) as download:
            if download.offset > writer.offset:
                raise DataLoss(f"blob {blob.digest}: the registry left out bytes before {download.offset}")
            if download.offset < writer.offset:
                await in_thread(writer.truncate, download.offset)
            async for piece in told(download.pieces, blob, writer, say):
                if writer.offset + len(piece) > blob.size:
                    await in_thread(writer.truncate, 0)
                    raise DataLoss(f"blob {blob.digest}: the registry sends more than its {blob.size} bytes")
                await in_thread(writer.write, piece)


async def told(
    pieces: AsyncIterator[bytes], blob: Descriptor, writer: ContentWriter, say: Report
) -> AsyncIterator[bytes]:
    """``pieces``, telling now and then how far ``writer`` has come."""
    last = 0.0
    async for piece in pieces:
        yield piece
        now = time.monotonic()
        if now - last >= REPORT_EVERY:
            last = now
            say(Event("downloading", blob.digest, writer.offset, blob.size, blob))


def hold(leases: LeaseStore, scope: Scope, digest: str) -> None:
    """Put a blob, here or on its way, on the lease of ``scope``."""
    if scope.lease:
        leases.add_resource(scope, scope.lease, Resource(digest, "content"))


async def put(content: ContentStore, leases: LeaseStore, scope: Scope, blob: Descriptor, data: bytes) -> None:
    """Store a small blob whose bytes are here, on the lease of ``scope``."""
    hold(leases, scope, blob.digest)

    def write() -> None:
        with contextlib.suppress(AlreadyExists), content.writer(scope, ingest_ref(blob), blob.size, blob.digest) as out:
            if out.offset < blob.size:
                out.truncate(0)
                out.write(data)
            out.commit(blob.size, blob.digest)

    while not graph.has(content, scope, blob.digest):
        try:
            await in_thread(write)
        except Unavailable:  # another pull writes the same few bytes at this moment
            await asyncio.sleep(BUSY_WAIT)
