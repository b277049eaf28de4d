"""Containers whose shim is at rest, as clients see them: nothing is lost, and everything works."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest

from tests.support.engine import Engine
from tests.support.host import is_at_rest, wait_for


@pytest.fixture(scope="module")
def restful(make_engine: Callable[..., Engine]) -> Engine:
    """An engine whose shims are at rest soon."""
    return make_engine(GANTRY_SHIM_REST="0.2")


@pytest.fixture
def client(restful: Engine) -> Iterator[docker.DockerClient]:
    made = docker.DockerClient(base_url=restful.url)
    yield made
    made.close()


def rest(engine: Engine, container: Any) -> None:
    """Wait for the shim to be at rest."""
    wait_for(lambda: is_at_rest(engine.shim(container.id)), "the shim at rest")


def receive(peer: socket.socket, wanted: bytes) -> None:
    """Read until ``wanted`` has come."""
    data = b""
    while wanted not in data:
        piece = peer.recv(4096)
        assert piece, data
        data += piece


@contextlib.contextmanager
def attached(container: Any, **params: int) -> Iterator[socket.socket]:
    """A connection to the container's streams, hung up at the end (the SDK's own objects keep it open)."""
    peer: socket.socket = container.attach_socket(params={"stream": 1, **params})._sock
    peer.settimeout(20)
    yield peer
    with contextlib.suppress(OSError):  # the other side may have hung up
        peer.shutdown(socket.SHUT_RDWR)


def test_output_that_wakes_it_is_logged(restful: Engine, client: docker.DockerClient) -> None:
    shared = restful.host.base / "shared"
    shared.mkdir()
    os.mkfifo(shared / "go")
    script = "while read word; do echo $word; echo not $word >&2; done < /shared/go; exit 3"
    container = client.containers.run("busybox", ["sh", "-c", script], volumes=[f"{shared}:/shared"], detach=True)

    def said(word: bytes) -> bool:
        return b"not " + word in container.logs()

    with open(shared / "go", "wb", buffering=0) as go:
        for word in (b"one", b"two"):
            rest(restful, container)
            go.write(word + b"\n")
            wait_for(functools.partial(said, word), "the output")
        rest(restful, container)
    assert container.wait(timeout=20)["StatusCode"] == 3
    assert container.logs(stderr=False) == b"one\ntwo\n"
    assert container.logs(stdout=False) == b"not one\nnot two\n"
    container.remove()


def test_a_terminal_at_rest(restful: Engine, client: docker.DockerClient) -> None:
    container = client.containers.run("busybox", ["sh"], tty=True, stdin_open=True, detach=True)
    rest(restful, container)
    container.resize(33, 99)
    with attached(container, stdin=1, stdout=1) as peer:
        peer.sendall(b"stty size\n")
        receive(peer, b"33 99")
        peer.sendall(b"\x10\x11")  # the keys that detach
        while peer.recv(4096):
            continue  # the prompt may still come; if there is no end after it, this times out
    rest(restful, container)
    with attached(container, stdin=1, stdout=1) as peer:
        peer.sendall(b"exit 4\n")
        assert container.wait(timeout=20)["StatusCode"] == 4
    container.remove()


def test_the_end_of_standard_input_arrives(restful: Engine, client: docker.DockerClient) -> None:
    made = client.api.create_container("busybox", ["cat"], stdin_open=True)  # the SDK asks for StdinOnce
    container = client.containers.get(made["Id"])
    container.start()
    rest(restful, container)
    with attached(container, stdin=1, stdout=1) as peer:
        peer.sendall(b"hello\n")
        peer.shutdown(socket.SHUT_WR)
        assert container.wait(timeout=20)["StatusCode"] == 0
    assert container.logs() == b"hello\n"
    container.remove()


def test_commands_wake_it(restful: Engine, client: docker.DockerClient) -> None:
    container = client.containers.run("busybox", ["sleep", "1000"], detach=True, init=True)
    rest(restful, container)
    assert container.exec_run(["echo", "in"]) == (0, b"in\n")
    rest(restful, container)
    container.pause()
    rest(restful, container)
    container.reload()
    assert container.status == "paused"
    container.unpause()
    rest(restful, container)
    assert "sleep 1000" in str(container.top()["Processes"])
    stats: Any = container.stats(stream=False)
    assert stats["pids_stats"]["current"] >= 1
    container.update(mem_limit="64m", memswap_limit="64m")
    container.restart(timeout=0)
    rest(restful, container)
    container.stop(timeout=5)
    container.reload()
    assert container.attrs["State"]["ExitCode"] == 143
    container.remove()


def test_an_engine_that_comes_back_finds_it(restful: Engine, client: docker.DockerClient) -> None:
    script = "read _; echo woken; exit 6"
    container = client.containers.run("busybox", ["sh", "-c", script], stdin_open=True, detach=True)
    rest(restful, container)
    for name in ("engine.main", "containerd_py.main"):
        restful.kill(name)
    restful.start()
    rest(restful, container)
    container.reload()
    assert container.status == "running"
    with attached(container, stdin=1, stdout=1) as peer:
        peer.sendall(b"\n")
        assert container.wait(timeout=20)["StatusCode"] == 6
    assert container.logs() == b"woken\n"
    container.remove()
