"""containerd-py's gRPC socket: nothing of gRPC is there before the first client, who cannot tell."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from protos.containerd import (
    content_pb2,
    content_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    version_pb2_grpc,
)
from tests.support.engine import Engine
from tests.support.host import wait_for

METADATA = (("containerd-namespace", "door"),)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What every client begins with: RFC 9113, section 3.4, with an empty SETTINGS frame."""
SETTINGS = 4
SECONDS = 30
OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(image=False)


@pytest.fixture
def address(engine: Engine) -> str:
    """The socket of a containerd-py that nobody has spoken gRPC with."""
    engine.kill("containerd_py.main")  # the engine starts another one
    path = f"{engine.host.exec_root}/containerd/containerd.sock"
    wait_for(lambda: connects(path), "another containerd-py")
    return path


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def has_grpc(engine: Engine) -> bool:
    return "cygrpc" in Path(f"/proc/{engine.pid('containerd_py.main')}/maps").read_text()


@contextlib.contextmanager
def channel(path: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{path}", options=OPTIONS) as opened:
        yield opened


def version(opened: grpc.Channel) -> str:
    return version_pb2_grpc.VersionStub(opened).Version(Empty(), timeout=SECONDS).revision


def publish(engine: Engine, path: str) -> subprocess.CompletedProcess[str]:
    """The command that old shims publish an event with."""
    message = AnyMessage(type_url="door.A", value=b"1").SerializeToString()
    command = (sys.executable, "-m", "containerd_py.main", "--address", path, "publish", "--topic", "/door/a")
    return engine.host.run(*command, "--namespace", "door", stdin=message)


def passed_on(engine: Engine, path: str) -> int:
    """Connections at the socket where grpc takes what came too early (proc(5), ``/proc/net/unix``)."""
    text = Path(f"/proc/{engine.pid('containerd_py.main')}/net/unix").read_text()
    lines = [line.split() for line in text.splitlines()]
    return len([line for line in lines if line[-1] == f"{path}.d/e" and line[5] == "03"])


def test_probes_load_nothing_and_the_first_clients_are_served(engine: Engine, address: str) -> None:
    for _ in range(20):
        assert connects(address)
    silent = socket.socket(socket.AF_UNIX)
    silent.settimeout(SECONDS)
    silent.connect(address)
    assert not has_grpc(engine)
    assert stat.S_IMODE(os.stat(address).st_mode) == 0o660
    before = os.stat(address).st_ino

    together = threading.Barrier(8)

    def ask(_: int) -> str:
        with channel(address) as opened:
            together.wait(SECONDS)
            return version(opened)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == ["gantry"] * 8
    assert has_grpc(engine), "the test sees what it looks for"
    assert stat.S_IMODE(os.stat(address).st_mode) == 0o660
    assert os.stat(address).st_ino != before, "it is grpc's own socket now"
    # Who had connected before, and speaks now, is answered all the same.
    with silent:
        silent.sendall(PREFACE)
        assert silent.recv(9)[3] == SETTINGS
    with channel(address) as opened:
        assert version(opened) == "gantry"
    assert engine.docker("ps").returncode == 0


def test_what_is_under_way_outlives_the_move_to_the_straight_way(engine: Engine, address: str) -> None:
    with channel(address) as opened:
        events = events_pb2_grpc.EventsStub(opened)
        stream: Any = events.Subscribe(events_pb2.SubscribeRequest(filters=["topic==/door/a"]), timeout=2 * SECONDS)
        stream.initial_metadata()
        assert passed_on(engine, address) == 1
        with channel(address) as other:
            assert version(other) == "gantry"
            assert passed_on(engine, address) == 1, "later clients reach grpc directly"
        written = write(opened, 24)
        # Asked for again and again, over whichever connection there is: none may fail.
        for _ in range(40):
            assert version(opened) == "gantry"
            threading.Event().wait(0.05)
        assert publish(engine, address).returncode == 0
        seen = next(stream)
        assert (seen.namespace, seen.topic, seen.event.type_url) == ("door", "/door/a", "door.A")
        stream.cancel()
        wait_for(
            lambda: version(opened) == "gantry" and passed_on(engine, address) == 0,
            "the client to take the straight way",
        )
        read = content_pb2_grpc.ContentStub(opened).Read(
            content_pb2.ReadContentRequest(digest=written), metadata=METADATA, timeout=SECONDS
        )
        assert "sha256:" + sha256(b"".join(answer.data for answer in read)).hexdigest() == written


def write(opened: grpc.Channel, megabytes: int) -> str:
    """Store that much over one stream of requests; the digest."""
    piece = os.urandom(1 << 20)
    total = megabytes << 20
    digest = "sha256:" + sha256(piece * megabytes).hexdigest()

    def requests() -> Iterator[content_pb2.WriteContentRequest]:
        for number in range(megabytes):
            yield content_pb2.WriteContentRequest(
                action=content_pb2.WRITE, ref="door", offset=number << 20, data=piece, total=total
            )
        yield content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT, ref="door", offset=total, total=total, expected=digest
        )

    answers = list(content_pb2_grpc.ContentStub(opened).Write(requests(), metadata=METADATA, timeout=SECONDS))
    assert answers[-1].offset == total
    return digest


def test_our_own_commands_need_no_grpc(engine: Engine, address: str) -> None:
    assert publish(engine, address).returncode == 0
    assert not has_grpc(engine)
    done = publish(engine, f"{address}.nowhere")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr and "Traceback" not in done.stderr


def test_a_daemon_that_ends_takes_its_sockets_along(engine: Engine, address: str) -> None:
    pid = engine.pid("containerd_py.main")
    with channel(address) as opened:
        assert version(opened) == "gantry"
        inode = os.stat(address).st_ino
        os.kill(pid, 15)
        wait_for(lambda: pid not in engine.host.processes(), "containerd-py to end")
        wait_for(lambda: connects(address), "another containerd-py")
        assert os.stat(address).st_ino != inode
        assert os.listdir(f"{address}.d") == []
    assert not has_grpc(engine)
