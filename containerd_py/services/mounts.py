"""``containerd.services.mounts.v1``: file systems that the daemon mounts for its clients.

Rule: mounting may take long, and happens in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from google.protobuf.empty_pb2 import Empty

from containerd_py.metadata.database import Database
from containerd_py.mounts.manager import MountManager
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.rpcs import MountsServicer
from protos.containerd import mounts_pb2 as pb


@served(pb.DESCRIPTOR.services_by_name["Mounts"])
class MountsService(MountsServicer):
    """Mounts over gRPC. What a client was told of survives a power cut, as far as mounts do."""

    def __init__(self, manager: MountManager, database: Database) -> None:
        self._manager = manager
        self._database = database

    async def Activate(self, request: pb.ActivateRequest, context: Context) -> pb.ActivateResponse:
        info = await asyncio.to_thread(
            self._manager.activate,
            scope(context),
            request.name,
            request.mounts,
            request.labels,
            temporary=request.temporary,
        )
        await self._database.flushed()
        return pb.ActivateResponse(info=info)

    async def Deactivate(self, request: pb.DeactivateRequest, context: Context) -> Empty:
        await asyncio.to_thread(self._manager.deactivate, scope(context), request.name)
        await self._database.flushed()
        return Empty()

    async def Info(self, request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        return pb.InfoResponse(info=self._manager.info(scope(context), request.name))

    async def Update(self, request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        info = self._manager.update(scope(context), request.info, request.update_mask.paths)
        await self._database.flushed()
        return pb.UpdateResponse(info=info)

    async def List(self, request: pb.ListRequest, context: Context) -> AsyncGenerator[pb.ListMessage, None]:
        for info in self._manager.list(scope(context), request.filters):
            yield pb.ListMessage(info=info)
