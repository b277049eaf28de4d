"""The Transfer and Streaming services over gRPC: import, push and pull with a password, export."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from containerd_py import grpc_server
from containerd_py.services.streaming import StreamingService, Streams, pack, unpack
from containerd_py.services.transfer import TransferService
from protos.containerd import streaming_pb2, streaming_pb2_grpc, transfer_pb2, transfer_pb2_grpc
from protos.containerd import transfer_types_pb2 as types
from tests.integration.transfer.test_pull_push_archives import Daemon, image_archive
from tests.support.registry import HTPASSWD, running_registry

METADATA = (("containerd-namespace", "test"),)
_EOF: Any = vars(grpc.aio)["EOF"]


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = tmp_path_factory.mktemp("registry")
    (base / "htpasswd").write_text(HTPASSWD)
    with running_registry(base, htpasswd=base / "htpasswd") as address:
        yield address


async def opened(channel: grpc.aio.Channel, id: str) -> Any:
    stub: Any = streaming_pb2_grpc.StreamingStub(channel)  # the stub's types know no call without an iterator
    call = stub.Stream(metadata=METADATA)
    await call.write(pack(streaming_pb2.StreamInit(id=id)))
    await call.read()
    return call


async def transfer(channel: grpc.aio.Channel, source: Any, destination: Any, progress: str = "") -> None:
    request = transfer_pb2.TransferRequest(
        source=pack(source),
        destination=pack(destination),
        options=transfer_pb2.TransferOptions(progress_stream=progress),
    )
    await transfer_pb2_grpc.TransferStub(channel).Transfer(request, metadata=METADATA)


async def answer(call: Any, password: str) -> None:
    while (message := await call.read()) is not _EOF:
        assert unpack(message, types.AuthRequest).wwwauthenticate
        reply = types.AuthResponse(authType=types.CREDENTIALS, username="ali", secret=password)
        await call.write(pack(reply))


def test_over_grpc_with_a_password(tmp_path: Path, private: str) -> None:
    image_archive(tmp_path / "app.tar", seed=5)
    data = (tmp_path / "app.tar").read_bytes()

    async def run() -> None:
        daemon, streams = Daemon(tmp_path / "a"), Streams()
        server = grpc.aio.server()
        grpc_server.add(server, StreamingService(streams))
        grpc_server.add(server, TransferService(daemon.transfers, streams))
        server.add_insecure_port(f"unix:{tmp_path}/s.sock")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
            await importing(channel, data)
            registry = types.OCIRegistry(reference=f"{private}/app:v1")
            with pytest.raises(grpc.aio.AioRpcError, match="push access denied"):
                await transfer(channel, types.ImageStore(name="docker.io/library/app:v1"), registry)
            for number, (source, destination) in enumerate(
                [
                    (types.ImageStore(name="docker.io/library/app:v1"), registry),
                    (registry, types.ImageStore(name="docker.io/library/again:v1")),
                ]
            ):
                auth = await opened(channel, f"auth{number}")
                answering = asyncio.create_task(answer(auth, "sesame"))
                registry.resolver.auth_stream = f"auth{number}"
                await transfer(channel, source, destination)
                await answering
            registry.resolver.auth_stream = ""
            with pytest.raises(grpc.aio.AioRpcError, match="pull access denied"):
                await transfer(channel, registry, types.ImageStore(name="x"))
            assert (await exporting(channel))[257:262] == b"ustar"
            with pytest.raises(grpc.aio.AioRpcError, match="not supported"):
                await transfer(channel, registry, registry)
        await daemon.transfers.close()
        await server.stop(0)

    asyncio.run(run())


async def importing(channel: grpc.aio.Channel, data: bytes) -> None:
    archive, progress = await opened(channel, "in"), await opened(channel, "progress")
    source = types.ImageImportStream(stream="in")
    work = asyncio.create_task(transfer(channel, source, types.ImageStore(), "progress"))
    window = at = 0
    while at < len(data):
        if window <= 0:
            window += unpack(await archive.read(), types.WindowUpdate).update
        part = data[at : at + min(window, 32768)]
        await archive.write(pack(types.Data(data=part)))
        at, window = at + len(part), window - len(part)
    await archive.done_writing()
    await work
    events = []
    while (message := await progress.read()) is not _EOF:
        events.append(unpack(message, types.Progress))
    assert events[-1].event == "saved"
    assert events[-1].name == "docker.io/library/app:v1"


async def exporting(channel: grpc.aio.Channel) -> bytes:
    archive = await opened(channel, "out")
    source = types.ImageStore(name="docker.io/library/again:v1")
    work = asyncio.create_task(transfer(channel, source, types.ImageExportStream(stream="out")))
    await archive.write(pack(types.WindowUpdate(update=100 << 20)))
    data = b""
    while (message := await archive.read()) is not _EOF:
        data += unpack(message, types.Data).data
    await work
    return data
