"""``containerd.services.content.v1``.

Rule: file data never blocks the event loop, and a client that goes away costs nothing: its read ends, its ingest keeps
what arrived for the next writer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from containerd_py.interfaces import ContentInfo, ContentStore, ContentWriter, IngestStatus, Scope
from containerd_py.metadata.database import Database
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.messages import timestamp
from containerd_py.services.rpcs import ContentServicer
from oci import errors
from protos.containerd import content_pb2 as pb

CHUNK = 1 << 20
SMALL = 1 << 16
"""Bytes that are read on the event loop: they cost less than a change of thread."""
LISTED = 100
"""Blobs in one message of List."""


@served(pb.DESCRIPTOR.services_by_name["Content"])
class ContentService(ContentServicer):
    """Content over gRPC."""

    def __init__(self, content: ContentStore, database: Database) -> None:
        self._content = content
        self._database = database

    async def Info(self, request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        return pb.InfoResponse(info=_info(self._content.info(scope(context), request.digest)))

    async def Update(self, request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        info = request.info
        updated = self._content.update(scope(context), info.digest, info.labels, request.update_mask.paths)
        await self._database.flushed()
        return pb.UpdateResponse(info=_info(updated))

    async def List(self, request: pb.ListContentRequest, context: Context) -> AsyncIterator[pb.ListContentResponse]:
        found = self._content.walk(scope(context), request.filters)
        for start in range(0, len(found), LISTED):
            yield pb.ListContentResponse(info=map(_info, found[start : start + LISTED]))

    async def Delete(self, request: pb.DeleteContentRequest, context: Context) -> Empty:
        self._content.delete(scope(context), request.digest)
        await self._database.flushed()
        return Empty()

    async def Read(self, request: pb.ReadContentRequest, context: Context) -> AsyncIterator[pb.ReadContentResponse]:
        with self._content.open(scope(context), request.digest) as blob:
            offset = request.offset
            if offset < 0 or offset > blob.size:
                raise errors.OutOfRange(f"content {request.digest}: no offset {offset} in {blob.size} bytes")
            end = min(blob.size, offset + request.size) if request.size > 0 else blob.size
            while offset < end:
                size = min(CHUNK, end - offset)
                data = blob.read(size, offset) if size <= SMALL else await asyncio.to_thread(blob.read, size, offset)
                if not data:
                    raise errors.DataLoss(f"content {request.digest}: its file ends at {offset} of {end} bytes")
                yield pb.ReadContentResponse(offset=offset, data=data)
                offset += len(data)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        return pb.StatusResponse(status=_status(self._content.status(scope(context), request.ref)))

    async def ListStatuses(self, request: pb.ListStatusesRequest, context: Context) -> pb.ListStatusesResponse:
        found = self._content.statuses(scope(context), request.filters)
        return pb.ListStatusesResponse(statuses=map(_status, found))

    async def Abort(self, request: pb.AbortRequest, context: Context) -> Empty:
        self._content.abort(scope(context), request.ref)
        return Empty()

    async def Write(
        self, requests: AsyncIterator[pb.WriteContentRequest], context: Context
    ) -> AsyncIterator[pb.WriteContentResponse]:
        """One ingest: STAT tells where it is, WRITE appends, COMMIT ends it."""
        try:
            first = await anext(requests)
        except StopAsyncIteration:
            raise errors.InvalidArgument("write of content: the client sent nothing") from None
        if not first.ref:
            raise errors.InvalidArgument("write of content: the first message must have a ref")
        writer = await _shielded_open(self._content, scope(context), first)
        with contextlib.closing(writer):
            upload = _Upload(writer, first)
            yield await upload.answer(first)
            async for request in requests:
                if upload.committed:
                    break
                yield await upload.answer(request)


async def _shielded_open(content: ContentStore, where: Scope, first: pb.WriteContentRequest) -> ContentWriter:
    """Open the writer in a thread. A client that goes away meanwhile does not leave it locked."""
    opening = asyncio.ensure_future(asyncio.to_thread(content.writer, where, first.ref, first.total, first.expected))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(opening: asyncio.Future[ContentWriter]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class _Upload:
    """What one stream of Write has said so far."""

    def __init__(self, writer: ContentWriter, first: pb.WriteContentRequest) -> None:
        self._writer = writer
        self._ref = first.ref
        self._total = 0
        self._expected = ""
        self.committed = False

    async def answer(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        self._remember(request)
        if request.action == pb.STAT:
            return self._response(request.action, self._writer.digest())
        # Not to be cut short by a client that goes away: the writer would be closed under the thread's hands.
        work = asyncio.ensure_future(asyncio.to_thread(self._apply, request))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait((work,))
            raise

    def _remember(self, request: pb.WriteContentRequest) -> None:
        if request.ref and request.ref != self._ref:
            raise errors.InvalidArgument(f"ingest {self._ref!r}: the stream cannot go on with {request.ref!r}")
        if request.expected:
            if self._expected and request.expected != self._expected:
                raise errors.InvalidArgument(
                    f"ingest {self._ref!r}: expected digest {self._expected} became {request.expected}"
                )
            self._expected = request.expected
        self._total = request.total or self._total

    def _apply(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        writer = self._writer
        if request.offset and request.offset != writer.offset:
            raise errors.OutOfRange(
                f"ingest {self._ref!r}: write at {request.offset} must occur at the current offset {writer.offset}"
            )
        if not request.offset and writer.offset and (request.data or request.action == pb.WRITE):
            writer.truncate(0)
        if request.data:
            writer.write(request.data)
        if request.action != pb.COMMIT:
            return self._response(request.action, writer.digest())
        size = writer.offset
        digest = writer.commit(self._total, self._expected, dict(request.labels))
        self.committed = True
        answer = self._response(request.action, digest)
        answer.offset = size
        return answer

    def _response(self, action: pb.WriteAction, digest: str) -> pb.WriteContentResponse:
        status = self._writer.status()
        return pb.WriteContentResponse(
            action=action,
            started_at=timestamp(status.started_at),
            updated_at=timestamp(status.updated_at),
            offset=status.offset,
            total=status.total,
            digest=digest,
        )


def _info(info: ContentInfo) -> pb.Info:
    return pb.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


def _status(status: IngestStatus) -> pb.Status:
    return pb.Status(
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
        started_at=timestamp(status.started_at),
        updated_at=timestamp(status.updated_at),
    )
