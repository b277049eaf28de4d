"""The engine's one door to containerd (ours or the real one): a gRPC channel and typed stubs.

Rule: nothing above this module sees ``grpc``; a failed call raises the taxonomy's error for its status code. With a
supervisor of ours, once ``ready`` has found it, most calls take the short way of ``engine.calls``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from engine.calls import RESTART_SECONDS, Calls, Channel
from engine.stubs import LazyChannel, Metadata, Stub
from oci import errors
from oci.hostpaths import ENGINE_NAMESPACE
from protos.containerd import (
    containers_pb2,
    content_pb2,
    diff_pb2,
    events_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
    streaming_pb2,
    tasks_pb2,
    transfer_pb2,
    types_pb2,
    version_pb2,
)
from protos.ttrpc import LATER

if TYPE_CHECKING:
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
    except Exception as error:
        grpc = sys.modules.get("grpc.aio")  # not there: no call of its has failed
        if grpc is None or not isinstance(error, grpc.AioRpcError):
            raise
        raise errors.from_code(error.code().value[0], error.details() or str(error.code())) from error


def ends_stream(message: Any) -> bool:
    """Whether what ``read`` of a stream gave stands behind the last message."""
    grpc = sys.modules["grpc.aio"]
    return message is grpc.EOF  # the stubs' types leave it out


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
        self._channel = LazyChannel(f"unix:{self.address}", OPTIONS)
        make = functools.partial(_stub, Channel(self._channel, self._calls), self.metadata)
        self.version: version_pb2_grpc.VersionAsyncStub = make(version_pb2, "Version")
        self.introspection: introspection_pb2_grpc.IntrospectionAsyncStub = make(introspection_pb2, "Introspection")
        self.namespaces: namespaces_pb2_grpc.NamespacesAsyncStub = make(namespaces_pb2, "Namespaces")
        self.content: content_pb2_grpc.ContentAsyncStub = make(content_pb2, "Content")
        self.images: images_pb2_grpc.ImagesAsyncStub = make(images_pb2, "Images")
        self.snapshots: snapshots_pb2_grpc.SnapshotsAsyncStub = make(snapshots_pb2, "Snapshots")
        self.diff: diff_pb2_grpc.DiffAsyncStub = make(diff_pb2, "Diff")
        self.containers: containers_pb2_grpc.ContainersAsyncStub = make(containers_pb2, "Containers")
        self.tasks: tasks_pb2_grpc.TasksAsyncStub = make(tasks_pb2, "Tasks")
        self.events: events_pb2_grpc.EventsAsyncStub = make(events_pb2, "Events")
        self.leases: leases_pb2_grpc.LeasesAsyncStub = make(leases_pb2, "Leases")
        self.transfer: transfer_pb2_grpc.TransferAsyncStub = make(transfer_pb2, "Transfer")
        self.streaming: streaming_pb2_grpc.StreamingAsyncStub = make(streaming_pb2, "Streaming")

    def with_lease(self, lease: str) -> tuple[tuple[str, str], ...]:
        """The ``metadata=`` of a call whose results ``lease`` shall keep."""
        return (*self.metadata, ("containerd-lease", lease))

    async def ready(self, seconds: float) -> None:
        """Wait until the supervisor answers; raises ``Unavailable`` naming the socket."""
        try:
            async with asyncio.timeout(seconds):
                await self._calls.probe()
                if not self._calls.usable:
                    await self._channel.open().channel_ready()
        except TimeoutError:
            raise errors.Unavailable(
                f"containerd at {self.address} did not answer within {seconds:g} s",
                hint="is containerd-py running? see its log",
            ) from None
        await self._calls.probe()

    async def present(self, *, short: bool = False) -> None:
        """Return once the supervisor answers: for streams, which gRPC would end at once while it is started again.

        Raises ``Unavailable`` when it did not come (back) in time. ``short``: for one that needs no gRPC where the
        supervisor is ours. Calls with one answer wait by themselves.
        """
        if self._calls.usable:
            await self._calls.present()
            if short:
                return
        await self._channel.ready(RESTART_SECONDS)

    async def prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, metadata: Metadata = ()
    ) -> Sequence[types_pb2.Mount]:
        """The mounts of a new snapshot, whose key nobody else uses.

        One that is there already was made by a supervisor that died before it said so.
        """
        metadata = metadata or self.metadata
        try:
            with translated():
                return (await self.snapshots.Prepare(request, metadata=metadata)).mounts
        except errors.AlreadyExists:
            mounts = snapshots_pb2.MountsRequest(snapshotter=request.snapshotter, key=request.key)
            with translated():
                return (await self.snapshots.Mounts(mounts, metadata=metadata)).mounts

    async def close(self) -> None:
        self._calls.close()
        await self._channel.close()


def _stub(channel: Channel, metadata: Metadata, module: ModuleType, service: str) -> Any:
    return Stub(module.DESCRIPTOR.services_by_name[service], channel, metadata)
