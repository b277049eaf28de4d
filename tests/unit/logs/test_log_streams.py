"""``docker logs`` from a raw log written by the shim's own writer: framing, tail, times, following."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.containers.config import ContainerConfig, HostConfig, LogConfig
from engine.containers.logs import LogQuery, Logs
from engine.containers.machine import Machine
from engine.containers.model import Container, State
from engine.containers.registry import Registry
from engine.store import Store
from oci.errors import FailedPrecondition, InvalidArgument, Unimplemented
from protos.attach import FrameDecoder
from shim.logfile import LogFile


class Box:
    """A container with a log and no engine around it."""

    def __init__(self, tmp_path: Path, *, status: str = "exited", tty: bool = False, driver: str = "json-file") -> None:
        options = {"labels": "a,b", "env": "E"}
        doc = Container(
            id="c" * 64, name="box", created_at=1, image_id="sha256:0", image_manifest=None, chain_id="",
            snapshotter="overlayfs", platform="linux/amd64", path="sh", args=(),
            config=ContainerConfig(image="busybox", tty=tty, labels={"a": "x y"}, env=("E=1", "F=2")),
            host=HostConfig(log_config=LogConfig(driver, options)), state=State(status=status),
        )  # fmt: skip
        self.machine = Machine(Store(":memory:"), doc)
        self.directory = str(tmp_path / "log")
        self.file = LogFile(self.directory)
        self.logs = Logs(
            cast(Registry, SimpleNamespace(find=lambda ref: self.machine, log_directory=lambda ident: self.directory))
        )

    def write(self, data: bytes, stream: int = 1) -> None:
        read, write = os.pipe()
        os.write(write, data)
        os.close(write)
        self.file.splice_from(read, stream)
        os.close(read)

    async def read(self, **query: Any) -> bytes:
        _, stream = self.logs.open("box", LogQuery(**{"stdout": True, "stderr": True, **query}))
        return b"".join([part async for part in stream])


def frames(data: bytes) -> list[tuple[int, bytes]]:
    return FrameDecoder().feed(data)


def test_streams_tail_and_details(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.write(b"one\n")
    box.write(b"two\n", 2)
    box.write(b"three\nopen")
    every = [(1, b"one\n"), (2, b"two\n"), (1, b"three\n"), (1, b"open")]
    assert frames(asyncio.run(box.read())) == every
    assert frames(asyncio.run(box.read(stderr=False))) == [f for f in every if f[0] == 1]
    assert frames(asyncio.run(box.read(tail=2))) == every[-2:]
    assert frames(asyncio.run(box.read(tail=0))) == []
    assert frames(asyncio.run(box.read(details=True)))[0] == (1, b"E=1,a=x+y one\n")
    stamped = frames(asyncio.run(box.read(timestamps=True)))[0][1]
    assert stamped.endswith(b"Z one\n")
    assert len(stamped) == len("2026-01-01T00:00:00.000000000Z one\n")


def test_terminal_is_not_framed(tmp_path: Path) -> None:
    box = Box(tmp_path, tty=True)
    box.write(b"a\r\n")
    assert asyncio.run(box.read()) == b"a\r\n"


def test_following_ends_with_the_container_and_misses_nothing(tmp_path: Path) -> None:
    box = Box(tmp_path, status="running")
    box.write(b"before\n")

    async def scenario() -> bytes:
        reading = asyncio.create_task(box.read(follow=True))
        for number in range(50):
            box.write(b"line %d\n" % number)
            await asyncio.sleep(0.002)
        box.write(b"last")
        assert not reading.done()
        box.machine.set_state(status="exited")
        box.machine.end_run()
        data = await asyncio.wait_for(reading, 3)
        box.logs.close()
        return data

    text = b"".join(data for _, data in frames(asyncio.run(scenario())))
    assert text == b"before\n" + b"".join(b"line %d\n" % n for n in range(50)) + b"last"


def test_following_stays_through_an_automatic_restart(tmp_path: Path) -> None:
    box = Box(tmp_path, status="running")

    async def scenario() -> bytes:
        reading = asyncio.create_task(box.read(follow=True))
        await asyncio.sleep(0.02)
        box.machine.set_state(status="restarting")
        box.machine.end_run()
        await asyncio.sleep(0.02)
        assert not reading.done()
        box.machine.set_state(status="running")
        box.write(b"second run\n")
        await asyncio.sleep(0.05)
        box.machine.set_state(status="exited")
        box.machine.end_run()
        return await asyncio.wait_for(reading, 3)

    assert frames(asyncio.run(scenario())) == [(1, b"second run\n")]


def test_until_ends_a_follower(tmp_path: Path) -> None:
    import time

    box = Box(tmp_path, status="running")
    box.write(b"x\n")

    async def scenario() -> bytes:
        return await asyncio.wait_for(box.read(follow=True, until=time.time_ns() + 200_000_000), 3)

    assert frames(asyncio.run(scenario())) == [(1, b"x\n")]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="choose at least one stream"):
        asyncio.run(Box(tmp_path).read(stdout=False, stderr=False))
    with pytest.raises(Unimplemented, match="does not support reading"):
        asyncio.run(Box(tmp_path, driver="none").read())
    with pytest.raises(FailedPrecondition, match="dead or marked for removal"):
        asyncio.run(Box(tmp_path, status="dead").read())


def test_a_large_log_is_read_from_its_end(tmp_path: Path) -> None:
    """Tail must not walk through all of it."""
    box = Box(tmp_path)
    for number in range(200):
        box.write(b"%04d %s\n" % (number, b"x" * 60000))
    before = bytes_read()
    last = frames(asyncio.run(box.read(tail=1)))
    tail = bytes_read() - before
    assert last[0][1].startswith(b"0199 ")
    assert len(frames(asyncio.run(box.read()))) == 200
    whole = bytes_read() - before - tail
    assert whole > 200 * 60000
    assert tail < whole / 3


def bytes_read() -> int:
    """What this process asked of ``read`` so far (proc_pid_io(5))."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])
