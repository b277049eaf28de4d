"""``containerd.services.version.v1``."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from containerd_py.services.errors import Context, served
from oci.version import __version__
from protos.containerd import version_pb2, version_pb2_grpc

REVISION = "gantry"


@served
class VersionService(version_pb2_grpc.VersionServicer):
    """What this daemon is."""

    async def Version(self, request: Empty, context: Context) -> version_pb2.VersionResponse:
        return version_pb2.VersionResponse(version=__version__, revision=REVISION)
