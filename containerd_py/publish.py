"""``containerd-py publish``: what old shims call to publish an event (``-publish-binary``)."""

from __future__ import annotations

import sys

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from containerd_py.asking import Daemon
from oci.errors import GantryError
from protos.containerd import events_pb2

CALL_SECONDS = 5.0


def publish(address: str, namespace: str, topic: str, event: bytes) -> int:
    """Publish ``event`` (an encoded ``Any``) at the daemon on ``address``. Returns the exit status."""
    try:
        packed = AnyMessage.FromString(event)
    except DecodeError as error:
        sys.stderr.write(f"containerd-py publish: standard input is no google.protobuf.Any: {error}\n")
        return 1
    request = events_pb2.PublishRequest(topic=topic, event=packed)
    try:
        with Daemon(address, CALL_SECONDS) as daemon:
            daemon.call(events_pb2.DESCRIPTOR.services_by_name["Events"], "Publish", request, namespace)
    except GantryError as error:
        sys.stderr.write(f"containerd-py publish: {error}\n")
        return 1
    return 0
