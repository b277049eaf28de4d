"""The engine's one door to containerd (ours or the real one): a gRPC channel and typed stubs.

Rule: nothing above this module sees ``grpc``; a failed call raises the taxonomy's error for its status code. With a
supervisor of ours, once ``ready`` has found it, most calls take the short way of ``engine.calls``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import grpc.aio

from engine.calls import Calls, Channel
from oci import errors
from oci.hostpaths import ENGINE_NAMESPACE
from protos.containerd import (
    containers_pb2_grpc,
    content_pb2_grpc,
    diff_pb2_grpc,
    events_pb2_grpc,
    images_pb2_grpc,
    introspection_pb2_grpc,
    leases_pb2_grpc,
    namespaces_pb2_grpc,
    snapshots_pb2_grpc,
    streaming_pb2_grpc,
    tasks_pb2_grpc,
    transfer_pb2_grpc,
    version_pb2_grpc,
)
from protos.ttrpc import LATER

S = TypeVar("S")

END_OF_STREAM: Any = vars(grpc.aio)["EOF"]  # the stubs' types leave it out
"""What ``read`` of a stream gives behind the last message."""

OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise ``oci.errors`` in place of gRPC errors. Wrap every call (and every stream's iteration) in it."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise errors.from_code(error.code().value[0], error.details() or str(error.code())) from error


class Backend:
    """Stubs by service, all bound to the engine's namespace. Calls return awaitables or async streams."""

    def __init__(self, address: str, namespace: str = ENGINE_NAMESPACE) -> None:
        """``address`` is a socket path or ``unix://`` URL. Nothing connects before the first call."""
        self.address = address.removeprefix("unix://")
        self.namespace = namespace
        self.metadata = (("containerd-namespace", namespace),)
        self.later = (*self.metadata, LATER)
        """The ``metadata=`` of a call that need not wait for the disk: the engine can tell it anew."""
        self._calls = Calls(f"{self.address}.ttrpc")
        self._channel = grpc.aio.insecure_channel(f"unix:{self.address}", options=OPTIONS)
        channel = cast(grpc.aio.Channel, Channel(self._channel, self._calls))
        self.version = self._bind(version_pb2_grpc.VersionStub(channel))
        self.introspection = self._bind(introspection_pb2_grpc.IntrospectionStub(channel))
        self.namespaces = self._bind(namespaces_pb2_grpc.NamespacesStub(channel))
        self.content = self._bind(content_pb2_grpc.ContentStub(channel))
        self.images = self._bind(images_pb2_grpc.ImagesStub(channel))
        self.snapshots = self._bind(snapshots_pb2_grpc.SnapshotsStub(channel))
        self.diff = self._bind(diff_pb2_grpc.DiffStub(channel))
        self.containers = self._bind(containers_pb2_grpc.ContainersStub(channel))
        self.tasks = self._bind(tasks_pb2_grpc.TasksStub(channel))
        self.events = self._bind(events_pb2_grpc.EventsStub(channel))
        self.leases = self._bind(leases_pb2_grpc.LeasesStub(channel))
        self.transfer = self._bind(transfer_pb2_grpc.TransferStub(channel))
        self.streaming = self._bind(streaming_pb2_grpc.StreamingStub(channel))

    def _bind(self, stub: S) -> S:
        """``stub`` with our metadata as every method's default; a caller's own ``metadata=`` replaces it."""
        for name, method in vars(stub).items():
            setattr(stub, name, functools.partial(method, metadata=self.metadata))
        return stub

    def with_lease(self, lease: str) -> tuple[tuple[str, str], ...]:
        """The ``metadata=`` of a call whose results ``lease`` shall keep."""
        return (*self.metadata, ("containerd-lease", lease))

    async def ready(self, seconds: float) -> None:
        """Wait until the supervisor answers; raises ``Unavailable`` naming the socket."""
        try:
            await asyncio.wait_for(self._channel.channel_ready(), seconds)
        except TimeoutError:
            raise errors.Unavailable(
                f"containerd at {self.address} did not answer within {seconds:g} s",
                hint="is containerd-py running? see its log",
            ) from None
        await self._calls.probe()

    async def close(self) -> None:
        self._calls.close()
        await self._channel.close(None)
