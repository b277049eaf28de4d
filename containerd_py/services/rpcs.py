"""What a servicer serves: the methods of its service, by the messages' own descriptions.

Rule: this is all that a door needs to know, gRPC's as well as ttrpc's. The generated ``…_pb2_grpc`` modules would tell
the same, but import grpc, which the daemon loads with its first gRPC client; here they are types only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

if TYPE_CHECKING:
    from protos.containerd.containers_pb2_grpc import ContainersServicer
    from protos.containerd.content_pb2_grpc import ContentServicer
    from protos.containerd.diff_pb2_grpc import DiffServicer
    from protos.containerd.events_pb2_grpc import EventsServicer
    from protos.containerd.images_pb2_grpc import ImagesServicer
    from protos.containerd.introspection_pb2_grpc import IntrospectionServicer
    from protos.containerd.leases_pb2_grpc import LeasesServicer
    from protos.containerd.mounts_pb2_grpc import MountsServicer
    from protos.containerd.namespaces_pb2_grpc import NamespacesServicer
    from protos.containerd.sandbox_pb2_grpc import ControllerServicer, StoreServicer
    from protos.containerd.snapshots_pb2_grpc import SnapshotsServicer
    from protos.containerd.streaming_pb2_grpc import StreamingServicer
    from protos.containerd.tasks_pb2_grpc import TasksServicer
    from protos.containerd.transfer_pb2_grpc import TransferServicer
    from protos.containerd.version_pb2_grpc import VersionServicer
else:
    ContainersServicer = ContentServicer = ControllerServicer = DiffServicer = EventsServicer = object
    ImagesServicer = object
    IntrospectionServicer = LeasesServicer = MountsServicer = NamespacesServicer = StoreServicer = SnapshotsServicer = (
        object
    )
    StreamingServicer = TasksServicer = TransferServicer = VersionServicer = object

SERVICE = "_served_service"
"""Attribute of a servicer's class: the description of what it serves."""

__all__ = [
    "SERVICE",
    "ContainersServicer",
    "ContentServicer",
    "ControllerServicer",
    "DiffServicer",
    "EventsServicer",
    "ImagesServicer",
    "IntrospectionServicer",
    "LeasesServicer",
    "MountsServicer",
    "NamespacesServicer",
    "Rpc",
    "SnapshotsServicer",
    "StoreServicer",
    "StreamingServicer",
    "TasksServicer",
    "TransferServicer",
    "VersionServicer",
    "rpcs_of",
    "service_of",
]


class Rpc(NamedTuple):
    """One method of a servicer."""

    service: str
    """Its full name, ``containerd.services.version.v1.Version``."""
    name: str
    call: Callable[..., Any]
    """A coroutine of ``(request, context)``, or an async generator where answers are a stream."""
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    requests_stream: bool
    answers_stream: bool


def service_of(servicer: object) -> ServiceDescriptor:
    """The service that the servicer's class was decorated with (``services.errors.served``)."""
    service: ServiceDescriptor = getattr(servicer, SERVICE)
    return service


def rpcs_of(servicer: object) -> Iterator[Rpc]:
    """Every method of ``servicer``."""
    service = service_of(servicer)
    for method in service.methods:
        yield _rpc(service.full_name, method, getattr(servicer, method.name))


def _rpc(service: str, method: MethodDescriptor, call: Callable[..., Any]) -> Rpc:
    return Rpc(
        service,
        method.name,
        call,
        GetMessageClass(method.input_type).FromString,
        GetMessageClass(method.output_type).SerializeToString,
        method.client_streaming,
        method.server_streaming,
    )
