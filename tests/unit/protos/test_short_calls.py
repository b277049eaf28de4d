"""The engine's calls to a supervisor of ours over ttrpc: the same answers, errors and ends as over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from containerd_py.exchange import LocalExchange
from containerd_py.services.calls import LONGEST, Calls
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.events import EventsService
from containerd_py.services.version import VersionService
from containerd_py.tasks import shim_events
from engine import calls as short
from oci import errors
from protos.containerd import (
    content_pb2,
    content_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    namespaces_pb2,
    namespaces_pb2_grpc,
    version_pb2_grpc,
)

METADATA = (("containerd-namespace", "moby"),)


@served
class Namespaces:
    """Answers with what it was asked, refuses, hangs or says too much."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Get(self, request: Any, context: Context) -> Any:
        if request.name == "no":
            raise errors.NotFound("namespace no: not found")
        if request.name == "long":
            return namespaces_pb2.GetNamespaceResponse(namespace=namespaces_pb2.Namespace(name="x" * LONGEST))
        if request.name == "hang":
            self.entered.set()
            try:
                await asyncio.sleep(60)
            finally:
                self.cancelled.set()
        found = namespaces_pb2.Namespace(name=f"{scope(context).namespace}/{request.name}")
        return namespaces_pb2.GetNamespaceResponse(namespace=found)

    async def List(self, request: Any, _context: Context) -> Any:
        name = "x" * LONGEST if request.filter else "a"
        return namespaces_pb2.ListNamespacesResponse(namespaces=[namespaces_pb2.Namespace(name=name)])

    Create = Update = Delete = Get


@served
class Content:
    """Blobs by their length: pieces of three bytes, without a word before the first one."""

    def __init__(self) -> None:
        self.reads = 0

    async def Read(self, request: Any, _context: Context) -> AsyncIterator[Any]:
        self.reads += 1
        if request.digest == "no":
            raise errors.NotFound("blob no: not found")
        for at in range(0, int(request.digest), 3):
            yield content_pb2.ReadContentResponse(data=b"abc"[: int(request.digest) - at])

    Info = Update = List = Delete = Status = ListStatuses = Write = Abort = Read


class Recorder:
    """Takes what generated code registers."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """gRPC's own way."""

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        self._calls.add(service, handlers)


class Supervisor:
    """The ttrpc side of one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.exchange = LocalExchange()
        self.namespaces = Namespaces()
        self.calls = Calls()
        recorder: Any = Recorder(self.calls)
        self.content = Content()
        servicer: Any = self.namespaces
        namespaces_pb2_grpc.add_NamespacesServicer_to_server(servicer, recorder)
        blobs: Any = self.content
        content_pb2_grpc.add_ContentServicer_to_server(blobs, recorder)
        version_pb2_grpc.add_VersionServicer_to_server(VersionService(), recorder)
        events_pb2_grpc.add_EventsServicer_to_server(EventsService(self.exchange), recorder)

    async def __aenter__(self) -> Supervisor:
        self._close = await shim_events.serve(self.path, self.exchange, self.calls)
        self.calls.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.exchange.close()
        self._close()
        Path(self.path).unlink()


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 20))


def stubs(path: str) -> tuple[short.Calls, Any, Any]:
    """The connection, and stubs that use it; gRPC leads nowhere."""
    calls = short.Calls(path)
    channel: Any = short.Channel(grpc.aio.insecure_channel("unix:/nowhere"), calls)
    return calls, namespaces_pb2_grpc.NamespacesStub(channel), events_pb2_grpc.EventsStub(channel)


async def asked(stub: Any, name: str, **options: Any) -> str:
    answer = await stub.Get(namespaces_pb2.GetNamespaceRequest(name=name), metadata=METADATA, **options)
    return str(answer.namespace.name)


def test_short_reads(tmp_path: Path) -> None:
    async def body() -> None:
        async with Supervisor(str(tmp_path / "s")) as supervisor:
            calls = short.Calls(str(tmp_path / "s"))
            channel: Any = short.Channel(grpc.aio.insecure_channel("unix:/nowhere"), calls)
            await calls.probe()
            stub: Any = content_pb2_grpc.ContentStub(channel)

            async def read(digest: str, size: int) -> bytes:
                request = content_pb2.ReadContentRequest(digest=digest, size=size)
                return b"".join([answer.data async for answer in stub.Read(request, metadata=METADATA)])

            for length in (0, 1, 3, 8):
                assert await read(str(length), short.LONGEST_READ) == (b"abc" * 3)[:length]
            with pytest.raises(errors.NotFound, match="blob no"):
                await read("no", 10)
            assert supervisor.content.reads == 5
            for size in (0, short.LONGEST_READ + 1):
                with pytest.raises(grpc.aio.AioRpcError, match="nowhere"):
                    await read("1", size)  # what may be long has need of windows

    run(body())


def test_answers_errors_and_the_limit(tmp_path: Path) -> None:
    async def body() -> None:
        async with Supervisor(str(tmp_path / "s")):
            calls, stub, _ = stubs(str(tmp_path / "s"))
            await calls.probe()
            assert await asked(stub, "a") == "moby/a"
            with pytest.raises(errors.NotFound, match="namespace no: not found"):
                await asked(stub, "no")
            with pytest.raises(errors.ResourceExhausted, match="too long"):
                await asked(stub, "long")
            with pytest.raises(grpc.aio.AioRpcError, match="nowhere"):  # such a list is asked for over gRPC
                await stub.List(namespaces_pb2.ListNamespacesRequest(filter="long"), metadata=METADATA)
            assert len((await stub.List(namespaces_pb2.ListNamespacesRequest(), metadata=METADATA)).namespaces) == 1
            assert await asked(stub, "b") == "moby/b", "the connection goes on"

    run(body())


def test_whoever_stops_waiting_ends_the_work(tmp_path: Path) -> None:
    async def body() -> None:
        async with Supervisor(str(tmp_path / "s")) as supervisor:
            calls, stub, _ = stubs(str(tmp_path / "s"))
            await calls.probe()
            with pytest.raises(errors.DeadlineExceeded):
                await asked(stub, "hang", timeout=0.1)
            await supervisor.namespaces.cancelled.wait()
            supervisor.namespaces.cancelled.clear()
            supervisor.namespaces.entered.clear()
            waiting = asyncio.ensure_future(asked(stub, "hang"))
            await supervisor.namespaces.entered.wait()
            calls.close()
            with pytest.raises(errors.Unavailable):
                await waiting
            await supervisor.namespaces.cancelled.wait()

    run(body())


def test_a_call_waits_for_a_supervisor_that_comes_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with Supervisor(str(tmp_path / "s")):
            calls, stub, _ = stubs(str(tmp_path / "s"))
            await calls.probe()
        await asyncio.sleep(0)
        with pytest.raises(errors.Unavailable):
            await asked(stub, "a")
        waiting = asyncio.ensure_future(asked(stub, "a", wait_for_ready=True))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        async with Supervisor(str(tmp_path / "s")):
            assert await waiting == "moby/a"

    run(body())


def test_a_stream_says_that_it_listens_and_ends_with_the_supervisor(tmp_path: Path) -> None:
    async def body() -> None:
        async with Supervisor(str(tmp_path / "s")) as supervisor:
            calls, _, stub = stubs(str(tmp_path / "s"))
            await calls.probe()
            stream = stub.Subscribe(events_pb2.SubscribeRequest(filters=["topic==/a/b"]), metadata=METADATA)
            await stream.initial_metadata()
            for topic in ("/a/b", "/a/c", "/a/b"):
                supervisor.exchange.publish("moby", topic, Empty())
            seen: AsyncIterator[Any] = aiter(stream)
            assert [(await anext(seen)).topic, (await anext(seen)).topic] == ["/a/b", "/a/b"]
            following = asyncio.ensure_future(anext(seen, None))
            await asyncio.sleep(0)
            calls.close()
            with pytest.raises(errors.Unavailable):
                await following
            left = stub.Subscribe(events_pb2.SubscribeRequest(), metadata=METADATA)
            await left.initial_metadata()
            left.cancel()
            for _ in range(1000):
                if not vars(supervisor.exchange)["_subscriptions"]:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("the subscription stays")

    run(body())


def test_somebody_elses_containerd_is_asked_over_grpc(tmp_path: Path) -> None:
    async def body() -> None:
        exchange, nothing = LocalExchange(), Calls()
        nothing.open()
        close = await shim_events.serve(str(tmp_path / "s"), exchange, nothing)
        calls, stub, _ = stubs(str(tmp_path / "s"))
        await calls.probe()
        assert not calls.usable
        with pytest.raises(grpc.aio.AioRpcError):
            await asked(stub, "a")
        close()

    run(body())
