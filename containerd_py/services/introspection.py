"""``containerd.services.introspection.v1``: who this daemon is and what it is made of.

Rule: the list names what works. Clients look here for snapshotters (with the platforms they unpack for), differs,
runtimes and services.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence

from google.protobuf.empty_pb2 import Empty

from containerd_py import filters as filter_language
from containerd_py.services.errors import Context, served
from containerd_py.services.rpcs import IntrospectionServicer
from oci import errors
from protos.containerd import introspection_pb2 as pb
from protos.containerd import types_pb2

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "i686": ("386", ""),
}
_STORES = (
    ("io.containerd.content.v1", "content"),
    ("io.containerd.metadata.v1", "bolt"),
    ("io.containerd.gc.v1", "scheduler"),
    ("io.containerd.event.v1", "exchange"),
    ("io.containerd.lease.v1", "manager"),
)
_TASKS = ("io.containerd.runtime.v2", "task")
_DIFFER = ("io.containerd.differ.v1", "walking")


def host_platform() -> types_pb2.Platform:
    """The platform of this machine, in Go's names."""
    machine = os.uname().machine
    architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
    return types_pb2.Platform(os="linux", architecture=architecture, variant=variant)


def plugins(snapshotters: Iterable[str], services: Iterable[str], root: str) -> list[pb.Plugin]:
    """The list, given the names of snapshotters and of served gRPC services."""
    platform = host_platform()
    found = [pb.Plugin(type=type, id=id) for type, id in _STORES]
    for name in snapshotters:
        exports = {"root": f"{root}/io.containerd.snapshotter.v1.{name}"}
        found.append(pb.Plugin(type="io.containerd.snapshotter.v1", id=name, platforms=[platform], exports=exports))
    services = tuple(services)
    if "diff" in services:
        found.append(pb.Plugin(type=_DIFFER[0], id=_DIFFER[1], platforms=[platform]))
    found.append(pb.Plugin(type=_TASKS[0], id=_TASKS[1], platforms=[platform]))
    found.extend(pb.Plugin(type="io.containerd.grpc.v1", id=name) for name in services)
    return found


def server_uuid(root: str) -> str:
    """The daemon's own id: made once, kept in ``root``."""
    path = f"{root}/io.containerd.grpc.v1.introspection/uuid"
    try:
        with open(path) as file:
            if text := file.read().strip():
                return text
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    made = str(uuid.uuid4())
    with open(f"{path}.new", "w") as file:
        file.write(made)
    os.rename(f"{path}.new", path)
    return made


@served(pb.DESCRIPTOR.services_by_name["Introspection"])
class IntrospectionService(IntrospectionServicer):
    """Introspection over gRPC; these calls need no namespace header."""

    def __init__(self, root: str, found: Sequence[pb.Plugin]) -> None:
        self._plugins = found
        self._uuid = server_uuid(root)

    async def Plugins(self, request: pb.PluginsRequest, context: Context) -> pb.PluginsResponse:
        matches = filter_language.compile_filters(tuple(request.filters))
        return pb.PluginsResponse(plugins=[plugin for plugin in self._plugins if matches(_lookup(plugin))])

    async def Server(self, request: Empty, context: Context) -> pb.ServerResponse:
        return pb.ServerResponse(uuid=self._uuid, pid=os.getpid(), pidns=os.stat("/proc/self/ns/pid").st_ino)

    async def PluginInfo(self, request: pb.PluginInfoRequest, context: Context) -> pb.PluginInfoResponse:
        for plugin in self._plugins:
            if (plugin.type, plugin.id) == (request.type, request.id):
                return pb.PluginInfoResponse(plugin=plugin)
        raise errors.NotFound(f"plugin {request.type}.{request.id}: not found")


def _lookup(plugin: pb.Plugin) -> filter_language.Lookup:
    fields = {"type": plugin.type, "id": plugin.id, "capabilities": ",".join(plugin.capabilities)}
    return filter_language.lookup_in(fields, {})
