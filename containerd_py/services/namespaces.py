"""``containerd.services.namespaces.v1``."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from containerd_py.metadata.database import Database
from containerd_py.metadata.namespaces import Namespace, Namespaces
from containerd_py.services.errors import Context, identifier, served
from containerd_py.services.rpcs import NamespacesServicer
from protos.containerd import namespaces_pb2 as pb


@served(pb.DESCRIPTOR.services_by_name["Namespaces"])
class NamespacesService(NamespacesServicer):
    """Namespaces over gRPC; these calls need no namespace header."""

    def __init__(self, namespaces: Namespaces, database: Database) -> None:
        self._namespaces = namespaces
        self._database = database

    async def Get(self, request: pb.GetNamespaceRequest, context: Context) -> pb.GetNamespaceResponse:
        return pb.GetNamespaceResponse(namespace=_message(self._namespaces.get(request.name)))

    async def List(self, request: pb.ListNamespacesRequest, context: Context) -> pb.ListNamespacesResponse:
        return pb.ListNamespacesResponse(namespaces=map(_message, self._namespaces.list()))

    async def Create(self, request: pb.CreateNamespaceRequest, context: Context) -> pb.CreateNamespaceResponse:
        name = identifier(request.namespace.name, "namespace")
        made = self._namespaces.create(name, request.namespace.labels)
        await self._database.flushed()
        return pb.CreateNamespaceResponse(namespace=_message(made))

    async def Update(self, request: pb.UpdateNamespaceRequest, context: Context) -> pb.UpdateNamespaceResponse:
        fields = request.update_mask.paths
        updated = self._namespaces.update(request.namespace.name, request.namespace.labels, fields)
        await self._database.flushed()
        return pb.UpdateNamespaceResponse(namespace=_message(updated))

    async def Delete(self, request: pb.DeleteNamespaceRequest, context: Context) -> Empty:
        self._namespaces.delete(request.name)
        await self._database.flushed()
        return Empty()


def _message(namespace: Namespace) -> pb.Namespace:
    return pb.Namespace(name=namespace.name, labels=namespace.labels)
