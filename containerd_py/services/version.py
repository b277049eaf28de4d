"""``containerd.services.version.v1``."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from containerd_py.services.errors import Context, served
from containerd_py.services.rpcs import VersionServicer
from oci.version import __version__
from protos.containerd import version_pb2

REVISION = "gantry"


@served(version_pb2.DESCRIPTOR.services_by_name["Version"])
class VersionService(VersionServicer):
    """What this daemon is."""

    async def Version(self, request: Empty, context: Context) -> version_pb2.VersionResponse:
        return version_pb2.VersionResponse(version=__version__, revision=REVISION)
