"""``containerd.services.sandbox.v1``: the store of sandboxes."""

from __future__ import annotations

from containerd_py.metadata.database import Database
from containerd_py.metadata.sandboxes import Sandboxes
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.rpcs import StoreServicer
from protos.containerd import sandbox_pb2 as pb


@served(pb.DESCRIPTOR.services_by_name["Store"])
class SandboxStoreService(StoreServicer):
    """Sandboxes over gRPC. What a client was told of survives a power cut."""

    def __init__(self, sandboxes: Sandboxes, database: Database) -> None:
        self._sandboxes = sandboxes
        self._database = database

    async def Create(self, request: pb.StoreCreateRequest, context: Context) -> pb.StoreCreateResponse:
        made = self._sandboxes.create(scope(context), request.sandbox)
        await self._database.flushed()
        return pb.StoreCreateResponse(sandbox=made)

    async def Update(self, request: pb.StoreUpdateRequest, context: Context) -> pb.StoreUpdateResponse:
        updated = self._sandboxes.update(scope(context), request.sandbox, request.fields)
        await self._database.flushed()
        return pb.StoreUpdateResponse(sandbox=updated)

    async def Delete(self, request: pb.StoreDeleteRequest, context: Context) -> pb.StoreDeleteResponse:
        self._sandboxes.delete(scope(context), request.sandbox_id)
        await self._database.flushed()
        return pb.StoreDeleteResponse()

    async def List(self, request: pb.StoreListRequest, context: Context) -> pb.StoreListResponse:
        return pb.StoreListResponse(list=self._sandboxes.list(scope(context), request.filters))

    async def Get(self, request: pb.StoreGetRequest, context: Context) -> pb.StoreGetResponse:
        return pb.StoreGetResponse(sandbox=self._sandboxes.get(scope(context), request.sandbox_id))
