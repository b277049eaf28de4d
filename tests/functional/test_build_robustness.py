"""Builds that go wrong: clients that leave, contexts cut short, huge contexts, daemons killed, disks that fill up."""

from __future__ import annotations

import os
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import DOCKER, Engine
from tests.support.host import PrivateHost, wait_for
from tests.support.images import busybox_rootfs

SLEEP = "3141.59"
"""What a step sleeps, to be found among the processes."""


@pytest.fixture(scope="module")
def builder(make_engine: Callable[..., Engine]) -> Engine:
    """An engine of its own: it is killed and looked into."""
    return make_engine()


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "Dockerfile").write_text(f"FROM busybox\nCOPY Dockerfile /d\nRUN echo begun; sleep {SLEEP}\n")
    yield tmp_path


def build(engine: Engine, context: Path, *options: str) -> list[str]:
    return ["env", "DOCKER_BUILDKIT=0", DOCKER, "-H", engine.url, "build", *options, str(context)]


def sleeping(engine: Engine) -> list[int]:
    return engine.host.pids_of("sleep", SLEEP)


def begun(engine: Engine, context: Path) -> subprocess.Popen[bytes]:
    """A build whose step sleeps."""
    process = engine.host.popen(*build(engine, context), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: sleeping(engine), "the step to run")
    return process


def spooled(engine: Engine) -> list[str]:
    """Contexts that are open, and what is left of builds on disk."""
    (pid,) = engine.host.pids_of("engine.main")
    opened = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    files = [str(path) for path in (engine.host.data_root / "builds").glob("*")]
    return [path for path in opened if "/builds/" in path] + files


def nothing_left(engine: Engine) -> bool:
    containers = engine.docker("ps", "-aq").stdout
    views = engine.host.check(
        "ctr", "-a", f"{engine.host.exec_root}/containerd/containerd.sock", "-n", "moby", "snapshots", "ls"
    )
    return not (sleeping(engine) or containers or spooled(engine) or "build-" in views)


def test_a_client_that_leaves_ends_the_step(builder: Engine, context: Path) -> None:
    process = begun(builder, context)
    for pid in builder.host.pids_of("build", str(context)):
        builder.host.run("kill", "-9", builder.host.inner_pid(pid))
    process.wait(10)
    wait_for(lambda: nothing_left(builder), "the step to be killed and swept")


def request(builder: Engine, head: str, body: bytes) -> socket.socket:
    """A raw connection on which ``head`` and ``body`` were sent."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(f"/proc/{builder.host.pid}/root{builder.socket}")
    sock.sendall(head.encode() + body)
    return sock


def test_a_context_cut_short_leaves_nothing(builder: Engine) -> None:
    head = "POST /build HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\nContent-Length: 1000000\r\n\r\n"
    large = tarfile.TarInfo("large")
    large.size = 900_000
    sock = request(builder, head, large.tobuf() + b"x" * 5000)
    wait_for(lambda: spooled(builder), "the context to arrive")
    sock.close()
    wait_for(lambda: not spooled(builder), "the context to be dropped")
    threads = f"/proc/{builder.pid('engine.main')}/task"
    names = [Path(f"{threads}/{task}/comm").read_text().strip() for task in os.listdir(threads)]
    assert "build-context" not in names


def test_a_context_that_is_no_archive_is_refused(builder: Engine) -> None:
    body = b"x" * 2000
    head = f"POST /build HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    sock = request(builder, head, body)
    answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 500")), answer
    assert b"message" in answer and not spooled(builder)
    sock.close()


def test_a_truncated_archive_is_refused(builder: Engine, context: Path) -> None:
    whole = subprocess.run(["tar", "-C", str(context), "-cz", "."], capture_output=True, check=True).stdout
    head = f"POST /build HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(whole) - 40}\r\n\r\n"
    sock = request(builder, head, whole[:-40])
    answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert b"message" in answer and b"HTTP/1.1 200" not in answer, answer
    assert not spooled(builder)
    sock.close()


def test_twenty_thousand_files(builder: Engine, tmp_path: Path) -> None:
    for directory in range(200):
        (tmp_path / f"d{directory}").mkdir()
        for file in range(100):
            (tmp_path / f"d{directory}/f{file}").write_text(f"{directory}/{file}")
    (tmp_path / ".dockerignore").write_text("d1*/f1*\n")
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY . /all/\nRUN find /all -type f | wc -l > /count\n")
    builder.host.check(*build(builder, tmp_path, "-q", "-t", "many"), timeout=170)
    builder.host.check(*build(builder, tmp_path, "-q", "-t", "many"), timeout=170)
    # 111 directories begin with d1, in each 11 files with f1; Dockerfile and .dockerignore are copied too.
    left_out = 111 * 11
    assert builder.docker("run", "--rm", "many", "cat", "/count").stdout.strip() == str(20_000 - left_out + 2)


def test_a_large_file(builder: Engine, tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 30)
        file.seek(12345678)
        file.write(b"here")
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY large /\n")
    builder.host.check(*build(builder, tmp_path, "-q", "-t", "large"), timeout=240)
    script = "stat -c %s /large; dd if=/large bs=1 skip=12345678 count=4 2> /dev/null"
    assert builder.docker("run", "--rm", "large", "sh", "-c", script).stdout == f"{1 << 30}\nhere"
    rss = next(
        line for line in Path(f"/proc/{builder.pid('engine.main')}/status").read_text().splitlines() if "VmHWM" in line
    )
    assert int(rss.split()[1]) < 400_000, rss
    builder.docker("rmi", "large")


def test_a_killed_daemon_sweeps_when_it_starts_again(builder: Engine, context: Path) -> None:
    process = begun(builder, context)
    builder.kill("engine.main")
    assert process.wait(20) != 0
    builder.start()
    wait_for(lambda: nothing_left(builder), "what the build left to be swept")
    (context / "Dockerfile").write_text("FROM busybox\nRUN true\n")
    builder.host.check(*build(builder, context, "-q"))


@pytest.fixture
def small() -> Iterator[Engine]:
    """An engine on a disk of 24 MB."""
    with PrivateHost(disk_size="24m") as host:
        engine = Engine(host)
        engine.start()
        engine.docker("import", "-", "busybox:latest", stdin=busybox_rootfs())
        yield engine
        engine.down()


def outcome(engine: Engine, context: Path) -> Any:
    return engine.host.run(*build(engine, context), timeout=120)


def test_a_full_disk_is_said_and_the_engine_goes_on(small: Engine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN head -c 40000000 /dev/urandom > /big\n")
    done = outcome(small, tmp_path)
    # What the command said of it had no space either.
    assert done.returncode == 1 and "non-zero code: 1" in done.stderr, done
    (tmp_path / "big").write_bytes(os.urandom(30 << 20))
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY big /big\n")
    done = outcome(small, tmp_path)
    assert done.returncode != 0 and "space" in done.stdout + done.stderr, done
    (tmp_path / "big").unlink()
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo fits > /small\n")
    done = outcome(small, tmp_path)
    assert done.returncode == 0, done
