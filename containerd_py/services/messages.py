"""Values of the stores as messages of the wire."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from oci.image import Descriptor
from protos.containerd import types_pb2


def timestamp(nanoseconds: int) -> Timestamp:
    """A moment since the epoch."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def descriptor_message(descriptor: Descriptor) -> types_pb2.Descriptor:
    """containerd's descriptor has no URLs and no platform: they stay behind."""
    return types_pb2.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=descriptor.annotations,
    )


def descriptor(message: types_pb2.Descriptor) -> Descriptor:
    """The reverse of ``descriptor_message``."""
    return Descriptor(message.media_type, message.digest, message.size, annotations=dict(message.annotations))
