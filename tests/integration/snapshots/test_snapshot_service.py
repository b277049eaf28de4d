"""The snapshots service as a gRPC client sees it: mounts, lists in batches, and containerd's status codes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

from containerd_py import grpc_server
from containerd_py.metadata.database import Database
from containerd_py.services.snapshots import SnapshotsService
from containerd_py.snapshots.choose import snapshotters
from protos.containerd import snapshots_pb2 as api
from protos.containerd import snapshots_pb2_grpc

METADATA = (("containerd-namespace", "default"),)


async def _conversation(root: Path) -> None:
    database = Database(str(root / "meta.db"))
    server = grpc.aio.server()
    service = SnapshotsService(snapshotters(str(root), database, lambda *_: None), database)
    grpc_server.add(server, service)
    server.add_insecure_port(f"unix:{root}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{root}/s") as channel:
        await _life(snapshots_pb2_grpc.SnapshotsStub(channel))
    await server.stop(None)
    database.close()


async def _life(stub: snapshots_pb2_grpc.SnapshotsAsyncStub) -> None:
    one = {"snapshotter": "overlayfs", "key": "key"}
    prepared = await stub.Prepare(api.PrepareSnapshotRequest(**one, labels={"a": "b"}), metadata=METADATA)
    assert list(prepared.mounts[0].options) == ["rw", "rbind"]
    commit = api.CommitSnapshotRequest(**one, name="base", labels={"c": "d"})
    await stub.Commit(commit, metadata=METADATA)
    info = (await stub.Stat(api.StatSnapshotRequest(snapshotter="overlayfs", key="base"), metadata=METADATA)).info
    assert (info.kind, dict(info.labels)) == (api.COMMITTED, {"c": "d"})
    assert info.created_at.seconds > 1_700_000_000
    for number in range(230):
        request = api.PrepareSnapshotRequest(snapshotter="overlayfs", key=f"k{number}", parent="base")
        await stub.Prepare(request, metadata=METADATA)
    batches = [
        len(m.info) async for m in stub.List(api.ListSnapshotsRequest(snapshotter="overlayfs"), metadata=METADATA)
    ]
    assert batches == [100, 100, 31]
    for refused, code in (
        (api.RemoveSnapshotRequest(snapshotter="overlayfs", key="base"), grpc.StatusCode.FAILED_PRECONDITION),
        (api.RemoveSnapshotRequest(snapshotter="overlayfs", key="nobody"), grpc.StatusCode.NOT_FOUND),
        (api.RemoveSnapshotRequest(snapshotter="nobody", key="k1"), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        try:
            await stub.Remove(refused, metadata=METADATA)
        except grpc.aio.AioRpcError as error:
            assert error.code() == code
        else:
            raise AssertionError(f"{refused} was not refused")


def test_the_service_speaks_as_containerd_does(tmp_path: Path) -> None:
    asyncio.run(_conversation(tmp_path))
