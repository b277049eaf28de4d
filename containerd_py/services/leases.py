"""``containerd.services.leases.v1``."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from containerd_py.interfaces import Collector, Lease, LeaseStore, Resource
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.messages import timestamp
from containerd_py.services.rpcs import LeasesServicer
from protos.containerd import leases_pb2 as pb


@served(pb.DESCRIPTOR.services_by_name["Leases"])
class LeasesService(LeasesServicer):
    """Leases over gRPC."""

    def __init__(self, leases: LeaseStore, collector: Collector) -> None:
        self._leases = leases
        self._collector = collector

    async def Create(self, request: pb.CreateRequest, context: Context) -> pb.CreateResponse:
        return pb.CreateResponse(lease=_message(self._leases.create(scope(context), request.id, request.labels)))

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> Empty:
        """With ``sync``, what only this lease kept is gone when the answer comes."""
        self._leases.delete(scope(context), request.id)
        if request.sync:
            await self._collector.collect()
        return Empty()

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        return pb.ListResponse(leases=map(_message, self._leases.list(scope(context), request.filters)))

    async def AddResource(self, request: pb.AddResourceRequest, context: Context) -> Empty:
        self._leases.add_resource(scope(context), request.id, _resource(request.resource))
        return Empty()

    async def DeleteResource(self, request: pb.DeleteResourceRequest, context: Context) -> Empty:
        self._leases.delete_resource(scope(context), request.id, _resource(request.resource))
        return Empty()

    async def ListResources(self, request: pb.ListResourcesRequest, context: Context) -> pb.ListResourcesResponse:
        found = self._leases.resources(scope(context), request.id)
        return pb.ListResourcesResponse(resources=[pb.Resource(id=id, type=type) for id, type in found])


def _message(lease: Lease) -> pb.Lease:
    return pb.Lease(id=lease.id, created_at=timestamp(lease.created_at), labels=lease.labels)


def _resource(message: pb.Resource) -> Resource:
    return Resource(message.id, message.type)
