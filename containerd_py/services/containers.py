"""``containerd.services.containers.v1``."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from containerd_py.metadata.containers import Containers
from containerd_py.metadata.database import Database
from containerd_py.services.errors import Context, later, scope, served
from containerd_py.services.rpcs import ContainersServicer
from protos.containerd import containers_pb2 as pb


@served(pb.DESCRIPTOR.services_by_name["Containers"])
class ContainersService(ContainersServicer):
    """Containers over gRPC. What a client was told of survives a power cut, but where the client said "later"."""

    def __init__(self, containers: Containers, database: Database) -> None:
        self._containers = containers
        self._database = database

    async def _lasting(self, context: Context) -> None:
        if later(context):
            self._database.flush_soon()
        else:
            await self._database.flushed()

    async def Get(self, request: pb.GetContainerRequest, context: Context) -> pb.GetContainerResponse:
        return pb.GetContainerResponse(container=self._containers.get(scope(context), request.id))

    async def List(self, request: pb.ListContainersRequest, context: Context) -> pb.ListContainersResponse:
        return pb.ListContainersResponse(containers=self._containers.list(scope(context), request.filters))

    async def ListStream(
        self, request: pb.ListContainersRequest, context: Context
    ) -> AsyncIterator[pb.ListContainerMessage]:
        for container in self._containers.each(scope(context), request.filters):
            yield pb.ListContainerMessage(container=container)

    async def Create(self, request: pb.CreateContainerRequest, context: Context) -> pb.CreateContainerResponse:
        made = self._containers.create(scope(context), request.container)
        await self._lasting(context)
        return pb.CreateContainerResponse(container=made)

    async def Update(self, request: pb.UpdateContainerRequest, context: Context) -> pb.UpdateContainerResponse:
        updated = self._containers.update(scope(context), request.container, request.update_mask.paths)
        await self._lasting(context)
        return pb.UpdateContainerResponse(container=updated)

    async def Delete(self, request: pb.DeleteContainerRequest, context: Context) -> Empty:
        self._containers.delete(scope(context), request.id)
        await self._lasting(context)
        return Empty()
