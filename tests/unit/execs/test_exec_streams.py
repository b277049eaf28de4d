"""Execs against a stand-in supervisor: FIFOs, stream end before exit code, clients that leave."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.containers.config import ContainerConfig, HostConfig
from engine.containers.exec import ExecConfig, Execs
from engine.containers.exec_stdio import DetachFilter, ExecFifos, FifoReader, drain_left_over, parse_detach_keys
from engine.containers.machine import Machine
from engine.containers.model import Container, RootfsMount, State
from engine.containers.registry import Registry
from engine.store import Store
from oci.errors import FailedPrecondition, InvalidArgument, NotFound
from protos.attach import FrameDecoder


class FakeTasks:
    """What Tasks does for an exec; the "process" is ``body``, given the opened FIFOs."""

    def __init__(self) -> None:
        self.request: Any = None
        self.closed_stdin = asyncio.Event()
        self.deleted = asyncio.Event()
        self.error: Exception | None = None
        self.ends: dict[int, int] = {}

    async def Exec(self, request: Any) -> None:
        self.request = request

    async def Start(self, request: Any) -> Any:
        if self.error is not None:
            raise self.error
        for number, path in enumerate((self.request.stdin, self.request.stdout, self.request.stderr)):
            if path:
                self.ends[number] = os.open(path, os.O_RDONLY | os.O_NONBLOCK if number == 0 else os.O_WRONLY)
        return SimpleNamespace(pid=77)

    async def CloseIO(self, request: Any) -> None:
        self.closed_stdin.set()

    async def DeleteProcess(self, request: Any) -> None:
        self.deleted.set()


class FakeDuplex:
    def __init__(self) -> None:
        self.sent = bytearray()
        self.broken = False
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self, limit: int = 65536) -> bytes:
        return await self.incoming.get()

    async def write(self, data: bytes) -> None:
        if self.broken:
            raise ConnectionResetError
        self.sent += data

    async def write_eof(self) -> None: ...

    async def close(self) -> None: ...


class World:
    def __init__(self, tmp_path: Path) -> None:
        (tmp_path / "rootfs").mkdir()
        doc = Container(
            id="c" * 64, name="box", created_at=1, image_id="sha256:0", image_manifest=None, chain_id="",
            snapshotter="overlayfs", platform="linux/amd64", path="sh", args=(),
            config=ContainerConfig(image="busybox"), host=HostConfig(), state=State(status="running", pid=5),
        )  # fmt: skip
        self.machine = Machine(Store(":memory:"), doc)
        self.tasks = FakeTasks()
        self.events: list[tuple[str, dict[str, str]]] = []
        rootfs = (RootfsMount("bind", str(tmp_path / "rootfs"), ()),)

        async def mounts(machine: Machine) -> tuple[RootfsMount, ...]:
            return rootfs

        def find(reference: str) -> Machine:
            return self.machine

        self.registry = SimpleNamespace(
            exec_exits=[], ended=[], reconnected=[], started=[],
            backend=SimpleNamespace(tasks=self.tasks), rootfs=mounts, find=find,
            paths=SimpleNamespace(exec_root=str(tmp_path)),
            publish=lambda machine, action, attributes=None: self.events.append((action, attributes or {})),
        )  # fmt: skip
        self.execs = Execs(cast(Registry, self.registry))

    def create(self, **fields: Any) -> Any:
        given = {"cmd": ("cat", "x"), "attach_stdout": True, "attach_stderr": True, **fields}
        return self.execs.create("box", ExecConfig(**given))

    def exit(self, process: Any, code: int) -> None:
        for end in self.tasks.ends.values():
            os.close(end)
        self.registry.exec_exits[0](self.machine, process.id, code, 1)


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the condition is other code's state
            await asyncio.sleep(0.005)


async def body_streams(tmp_path: Path) -> None:
    world = World(tmp_path)
    process = world.create(attach_stdin=True)
    duplex = FakeDuplex()
    running = asyncio.create_task(world.execs.run_attached(process, duplex, None, framed=True))
    await until(lambda: process.pid == 77)
    os.write(world.tasks.ends[1], b"out" * 10000)
    os.write(world.tasks.ends[2], b"err")
    duplex.incoming.put_nowait(b"typed")
    duplex.incoming.put_nowait(b"")
    await asyncio.wait_for(world.tasks.closed_stdin.wait(), 5)
    assert os.read(world.tasks.ends[0], 100) == b"typed"
    assert os.read(world.tasks.ends[0], 100) == b""
    assert process.document()["Running"] is True
    assert not running.done()
    world.exit(process, 3)
    await asyncio.wait_for(running, 5)
    assert (process.document()["ExitCode"], process.document()["Running"]) == (3, False)
    streams = {1: b"", 2: b""}
    for stream, data in FrameDecoder().feed(bytes(duplex.sent)):
        streams[stream] += data
    assert streams == {1: b"out" * 10000, 2: b"err"}
    assert [event for event, _ in world.events] == ["exec_create: cat x", "exec_start: cat x", "exec_die"]
    assert world.events[-1][1] == {"execID": process.id, "exitCode": "3"}
    await until(world.tasks.deleted.is_set)
    assert os.listdir(tmp_path / "f") == []
    assert world.machine.execs == {}


async def body_client_gone(tmp_path: Path) -> None:
    """The process goes on and its output is drained, so that it never blocks."""
    world = World(tmp_path)
    process = world.create()
    duplex = FakeDuplex()
    duplex.broken = True
    running = asyncio.create_task(world.execs.run_attached(process, duplex, None, framed=True))
    await until(lambda: process.pid)
    os.set_blocking(world.tasks.ends[1], False)
    written = 0
    async with asyncio.timeout(30):
        while written < 1 << 20:
            try:
                written += os.write(world.tasks.ends[1], bytes(4096))
            except BlockingIOError:
                await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert process.running
    world.exit(process, 0)
    await asyncio.wait_for(process.ended.wait(), 5)


async def body_failed_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    process = world.create()
    world.tasks.error = InvalidArgument(
        'OCI runtime exec failed: exec failed: exec: "nosuch": executable file not found in $PATH: unknown'
    )
    duplex = FakeDuplex()
    await world.execs.run_attached(process, duplex, None, framed=True)
    assert b"executable file not found" in duplex.sent
    assert process.document()["ExitCode"] == 127
    with pytest.raises(FailedPrecondition, match="already run"):
        world.execs.startable(process.id)


async def body_grandchild(tmp_path: Path) -> None:
    """A grandchild that keeps stdout open delays the end by the grace, not for ever."""
    world = World(tmp_path)
    process = world.create()
    running = asyncio.create_task(world.execs.run_attached(process, FakeDuplex(), None, framed=True))
    await until(lambda: process.pid)
    world.registry.exec_exits[0](world.machine, process.id, 0, 1)
    await asyncio.sleep(0.2)
    assert not running.done()
    await asyncio.wait_for(running, 5)
    for end in world.tasks.ends.values():
        os.close(end)


async def body_states(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(InvalidArgument, match="No exec command specified"):
        world.create(cmd=())
    for status, words in (("paused", "unpause"), ("exited", "is not running"), ("restarting", "wait until")):
        world.machine.set_state(status=status)
        with pytest.raises(FailedPrecondition, match=words):
            world.create()
    with pytest.raises(NotFound, match="No such exec instance: zz"):
        world.execs.get("zz")


async def body_left_over(tmp_path: Path) -> None:
    """What execs of a killed daemon write is read, and their FIFOs go when they end."""
    os.makedirs(tmp_path / "f/old")
    path = str(tmp_path / "f/old/1")
    os.mkfifo(path)
    holder = os.open(path, os.O_RDWR)
    os.write(holder, b"x" * 60000)
    draining = asyncio.create_task(drain_left_over(str(tmp_path / "f")))
    await asyncio.sleep(0.1)
    os.set_blocking(holder, False)
    assert os.write(holder, b"x" * 60000) == 60000
    os.close(holder)
    await asyncio.wait_for(draining, 5)
    assert os.listdir(tmp_path / "f") == []


async def body_reader_before_writer(tmp_path: Path) -> None:
    fifos = ExecFifos(str(tmp_path / "f"), stdin=False, stdout=True, stderr=False)
    reader: FifoReader = fifos.outputs[1]
    reading = asyncio.create_task(reader.read())
    await asyncio.sleep(0.05)
    assert not reading.done()
    os.close(os.open(fifos.paths[1], os.O_WRONLY))
    assert await asyncio.wait_for(reading, 5) == b""
    fifos.close()


@pytest.mark.parametrize(
    "body",
    [
        body_streams, body_client_gone, body_failed_start, body_grandchild, body_states, body_left_over,
        body_reader_before_writer,
    ],
)  # fmt: skip
def test_exec(body: Any, tmp_path: Path) -> None:
    asyncio.run(body(tmp_path))


def test_detach_keys() -> None:
    assert parse_detach_keys("") == b"\x10\x11"
    assert parse_detach_keys("ctrl-a,b,ctrl-[") == b"\x01b\x1b"
    with pytest.raises(InvalidArgument):
        parse_detach_keys("ctrl-!!")
    keys = DetachFilter(b"\x10\x11")
    assert keys.feed(b"ab\x10") == (b"ab", False)
    assert keys.feed(b"c") == (b"\x10c", False)
    assert keys.feed(b"\x10\x10\x11d") == (b"\x10", True)
