"""``containerd.services.snapshots.v1.Snapshots``.

Rule: what costs microseconds runs on the loop, what touches files in bulk runs in a thread. A commit is on disk, with
its row, before the client hears of it; a prepare is not synced, since a crash may forget it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping

from google.protobuf.empty_pb2 import Empty

from containerd_py.interfaces import Mount, SnapshotInfo
from containerd_py.metadata.database import Database
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.rpcs import SnapshotsServicer
from containerd_py.snapshots.base import DirectorySnapshotter
from oci.errors import InvalidArgument
from protos.containerd import snapshots_pb2 as api
from protos.containerd import types_pb2

_BATCH = 100
"""Snapshots in one message of a list, as containerd sends them."""


def mount_messages(mounts: Iterable[Mount]) -> list[types_pb2.Mount]:
    """Mounts as the API has them."""
    return [types_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in mounts]


def mounts_of(messages: Iterable[types_pb2.Mount]) -> list[Mount]:
    """The reverse of ``mount_messages``."""
    return [Mount(m.type, m.source, m.target, tuple(m.options)) for m in messages]


@served(api.DESCRIPTOR.services_by_name["Snapshots"])
class SnapshotsService(SnapshotsServicer):
    """All snapshotters of the daemon, by name."""

    def __init__(self, snapshotters: Mapping[str, DirectorySnapshotter], database: Database) -> None:
        self._snapshotters = snapshotters
        self._database = database

    def _named(self, name: str) -> DirectorySnapshotter:
        if not name:
            raise InvalidArgument("snapshotter argument missing")
        found = self._snapshotters.get(name)
        if found is None:
            known = ", ".join(self._snapshotters)
            raise InvalidArgument(f"snapshotter not loaded: {name}", hint=f"there are: {known}")
        return found

    async def Prepare(self, request: api.PrepareSnapshotRequest, context: Context) -> api.PrepareSnapshotResponse:
        snapshotter = self._named(request.snapshotter)
        arguments = (scope(context), request.key, request.parent, dict(request.labels))
        if snapshotter.copies:
            mounts = await asyncio.to_thread(snapshotter.prepare, *arguments)
        else:
            mounts = snapshotter.prepare(*arguments)
        return api.PrepareSnapshotResponse(mounts=mount_messages(mounts))

    async def View(self, request: api.ViewSnapshotRequest, context: Context) -> api.ViewSnapshotResponse:
        snapshotter = self._named(request.snapshotter)
        mounts = snapshotter.view(scope(context), request.key, request.parent, dict(request.labels))
        return api.ViewSnapshotResponse(mounts=mount_messages(mounts))

    async def Mounts(self, request: api.MountsRequest, context: Context) -> api.MountsResponse:
        mounts = self._named(request.snapshotter).mounts(scope(context), request.key)
        return api.MountsResponse(mounts=mount_messages(mounts))

    async def Commit(self, request: api.CommitSnapshotRequest, context: Context) -> Empty:
        snapshotter = self._named(request.snapshotter)
        caller, labels = scope(context), dict(request.labels)
        await asyncio.to_thread(snapshotter.commit, caller, request.name, request.key, labels, parent=request.parent)
        await self._database.flushed()
        return Empty()

    async def Remove(self, request: api.RemoveSnapshotRequest, context: Context) -> Empty:
        self._named(request.snapshotter).remove(scope(context), request.key)
        return Empty()

    async def Stat(self, request: api.StatSnapshotRequest, context: Context) -> api.StatSnapshotResponse:
        return api.StatSnapshotResponse(
            info=_message(self._named(request.snapshotter).stat(scope(context), request.key))
        )

    async def Update(self, request: api.UpdateSnapshotRequest, context: Context) -> api.UpdateSnapshotResponse:
        snapshotter = self._named(request.snapshotter)
        labels, fields = dict(request.info.labels), list(request.update_mask.paths)
        info = snapshotter.update(scope(context), request.info.name, labels, fields)
        await self._database.flushed()
        return api.UpdateSnapshotResponse(info=_message(info))

    async def List(
        self, request: api.ListSnapshotsRequest, context: Context
    ) -> AsyncGenerator[api.ListSnapshotsResponse, None]:
        infos = self._named(request.snapshotter).walk(scope(context), list(request.filters))
        for start in range(0, len(infos), _BATCH):
            yield api.ListSnapshotsResponse(info=[_message(info) for info in infos[start : start + _BATCH]])

    async def Usage(self, request: api.UsageRequest, context: Context) -> api.UsageResponse:
        snapshotter = self._named(request.snapshotter)
        usage = await asyncio.to_thread(snapshotter.usage, scope(context), request.key)
        return api.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def Cleanup(self, request: api.CleanupRequest, context: Context) -> Empty:
        await asyncio.to_thread(self._named(request.snapshotter).cleanup)
        return Empty()


def _message(info: SnapshotInfo) -> api.Info:
    message = api.Info(name=info.name, parent=info.parent, kind=api.Kind.Name(info.kind), labels=info.labels)
    message.created_at.FromNanoseconds(info.created_at)
    message.updated_at.FromNanoseconds(info.updated_at)
    return message
