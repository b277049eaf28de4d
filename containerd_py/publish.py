"""``containerd-py publish``: what old shims call to publish an event (``-publish-binary``)."""

from __future__ import annotations

import sys

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from protos.containerd import events_pb2, events_pb2_grpc

CALL_SECONDS = 5.0


def publish(address: str, namespace: str, topic: str, event: bytes) -> int:
    """Publish ``event`` (an encoded ``Any``) at the daemon on ``address``. Returns the exit status."""
    try:
        packed = AnyMessage.FromString(event)
    except DecodeError as error:
        sys.stderr.write(f"containerd-py publish: standard input is no google.protobuf.Any: {error}\n")
        return 1
    with grpc.insecure_channel(f"unix:{address}") as channel:
        request = events_pb2.PublishRequest(topic=topic, event=packed)
        try:
            events_pb2_grpc.EventsStub(channel).Publish(
                request, metadata=(("containerd-namespace", namespace),), timeout=CALL_SECONDS
            )
        except grpc.RpcError as error:
            sys.stderr.write(f"containerd-py publish: {error}\n")
            return 1
    return 0
