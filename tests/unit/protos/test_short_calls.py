"""The engine's calls to a supervisor of ours over ttrpc: the same answers, errors and ends as over gRPC."""

from __future__ import annotations

import asyncio
import fcntl
import termios
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
from engine.stubs import LazyChannel
from oci import errors
from protos import ttrpc
from protos.containerd import (
    content_pb2,
    content_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    namespaces_pb2,
    namespaces_pb2_grpc,
)

METADATA = (("containerd-namespace", "moby"),)


@served(namespaces_pb2.DESCRIPTOR.services_by_name["Namespaces"])
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

    async def Delete(self, request: Any, _context: Context) -> Any:
        return Empty()

    Create = Update = Get


@served(content_pb2.DESCRIPTOR.services_by_name["Content"])
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


class Supervisor:
    """The ttrpc side of one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.exchange = LocalExchange()
        self.namespaces = Namespaces()
        self.calls = Calls()
        self.content = Content()
        self.calls.add(self.namespaces, self.content, VersionService(), EventsService(self.exchange))

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
    channel: Any = short.Channel(LazyChannel("unix:/nowhere", ()), calls)
    return calls, namespaces_pb2_grpc.NamespacesStub(channel), events_pb2_grpc.EventsStub(channel)


async def asked(stub: Any, name: str, **options: Any) -> str:
    answer = await stub.Get(namespaces_pb2.GetNamespaceRequest(name=name), metadata=METADATA, **options)
    return str(answer.namespace.name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for."""
    monkeypatch.setattr(short, "RESTART_SECONDS", 0.1)


def test_short_reads(tmp_path: Path) -> None:
    async def body() -> None:
        async with Supervisor(str(tmp_path / "s")) as supervisor:
            calls = short.Calls(str(tmp_path / "s"))
            channel: Any = short.Channel(LazyChannel("unix:/nowhere", ()), calls)
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


@pytest.mark.usefixtures("impatient")
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
            with pytest.raises(
                errors.Unavailable, match="containerd at /nowhere cannot be reached"
            ):  # such a list is asked for over gRPC
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


@pytest.mark.parametrize("for_ever", [False, True])
def test_a_call_waits_for_a_supervisor_that_comes_back(tmp_path: Path, for_ever: bool) -> None:
    async def body() -> None:
        async with Supervisor(str(tmp_path / "s")):
            calls, stub, _ = stubs(str(tmp_path / "s"))
            await calls.probe()
        waiting = asyncio.ensure_future(asked(stub, "a", wait_for_ready=for_ever))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        async with Supervisor(str(tmp_path / "s")):
            assert await waiting == "moby/a"

    run(body())


@pytest.mark.usefixtures("impatient")
def test_a_supervisor_that_stays_away_is_named(tmp_path: Path) -> None:
    async def body() -> None:
        path = str(tmp_path / "c.sock.ttrpc")
        async with Supervisor(path):
            calls, stub, _ = stubs(path)
            await calls.probe()
        for call in (asked(stub, "a"), calls.present()):
            with pytest.raises(errors.Unavailable) as caught:
                await call
            assert caught.value.message == (
                f"containerd at {tmp_path}/c.sock cannot be reached: No such file or directory, "
                "after 0.1 s of waiting for it"
            )
            assert "log says why" in caught.value.hint

    run(body())


class Dying:
    """Takes connections, answers ``Version``, and does with the next request what a supervisor that is killed may do.

    ``reads``: it had read the request, so it may have carried it out. ``again``: the next one dies as well.
    """

    def __init__(self, path: str, *, reads: bool, again: bool = False) -> None:
        self._path, self._reads, self._again = path, reads, again
        self.seen = 0
        self.dead = asyncio.Event()

    async def __aenter__(self) -> Dying:
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _DyingPeer(self), self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def take(self, peer: _DyingPeer, frame: ttrpc.Frame) -> None:
        if ttrpc.decode_request(frame).method == "Version":
            peer.answer(frame.stream_id)
            if not self._reads:
                peer.leave_unread()
            return
        self.seen += 1
        self.die(peer)

    def die(self, peer: _DyingPeer) -> None:
        if not self._again:
            self._server.close()
            Path(self._path).unlink()
        peer.close()
        self.dead.set()


class _DyingPeer(asyncio.Protocol):
    def __init__(self, supervisor: Dying) -> None:
        self._supervisor = supervisor
        self._decoder = ttrpc.Decoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            self._supervisor.take(self, frame)

    def answer(self, number: int) -> None:
        self._transport.write(ttrpc.encode_response(number, b""))

    def leave_unread(self) -> None:
        """Read no more; close once something has come."""
        self._transport.pause_reading()
        asyncio.get_running_loop().create_task(self._close_on_data())

    async def _close_on_data(self) -> None:
        connected = self._transport.get_extra_info("socket")
        waiting = b"\0\0\0\0"
        while not int.from_bytes(waiting, "little"):
            await asyncio.sleep(0.01)
            waiting = fcntl.ioctl(connected.fileno(), termios.FIONREAD, b"\0\0\0\0")
        self._supervisor.die(self)

    def close(self) -> None:
        self._transport.abort()


@pytest.mark.parametrize(("method", "reads", "again"), [
    ("Get", True, True), ("Get", False, True), ("Delete", True, False), ("Delete", False, True),
])  # fmt: skip
def test_what_may_have_been_done_is_not_done_again(tmp_path: Path, method: str, reads: bool, again: bool) -> None:
    """``Namespaces/Delete`` stands for what changes something: it is made again only where nobody had read it."""

    async def body() -> None:
        path = str(tmp_path / "s")
        async with Dying(path, reads=reads) as dying:
            calls = short.Calls(path)
            await calls.probe()
            assert calls.usable
            request = namespaces_pb2.GetNamespaceRequest(name="a").SerializeToString()
            name = f"/containerd.services.namespaces.v1.Namespaces/{method}"
            asking = asyncio.ensure_future(calls.unary(name, request, METADATA, None, False))
            if not again:
                with pytest.raises(short.HungUp, match="containerd ended before it answered Namespaces/Delete"):
                    await asking
                assert dying.seen == 1
                return
            await dying.dead.wait()
        async with Supervisor(path):
            assert isinstance(await asking, bytes)
        assert dying.seen == int(reads)

    run(body())


def test_a_call_that_kills_every_supervisor_ends(tmp_path: Path) -> None:
    async def body() -> None:
        async with Dying(str(tmp_path / "s"), reads=True, again=True) as dying:
            calls, stub, _ = stubs(str(tmp_path / "s"))
            await calls.probe()
            with pytest.raises(short.HungUp, match="Namespaces/Get"):
                await asked(stub, "a")
            assert dying.seen == short.TRIES

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


@pytest.mark.usefixtures("impatient")
def test_somebody_elses_containerd_is_asked_over_grpc(tmp_path: Path) -> None:
    async def body() -> None:
        exchange, nothing = LocalExchange(), Calls()
        nothing.open()
        close = await shim_events.serve(str(tmp_path / "s"), exchange, nothing)
        calls, stub, _ = stubs(str(tmp_path / "s"))
        await calls.probe()
        assert not calls.usable
        with pytest.raises(errors.Unavailable, match="containerd at /nowhere cannot be reached: nobody answers"):
            await asked(stub, "a")
        close()

    run(body())
