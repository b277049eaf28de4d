"""The docker client pulls through a proxy that cuts, corrupts and limits: it ends right, or with a clear error."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.integration.transfer.test_misbehaving_registry import Proxy
from tests.support.engine import Engine
from tests.support.host import PrivateHost, wait_for
from tests.support.registries import Site, site
from tests.support.registry_images import Layout, index_layout

SIZE = 3_000_000
SLACK = 65536
"""Bytes that a cut may lose on the wire: they were sent but never read."""
_CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def inside(host: PrivateHost, proxy: Proxy) -> Iterator[Proxy]:
    """``proxy`` in a thread of ours that lives in the network of ``host``."""
    ready, loops, stop = threading.Event(), [], asyncio.Event()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        async with proxy.running():
            ready.set()
            await stop.wait()

    def work() -> None:
        descriptor = os.open(f"/proc/{host.pid}/ns/net", os.O_RDONLY)
        assert ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) == 0
        os.close(descriptor)
        asyncio.run(serve())

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(image=False)


@pytest.fixture(scope="module")
def registries(engine: Engine) -> Iterator[Site]:
    with site(engine.host) as made:
        yield made


@pytest.fixture
def proxy(engine: Engine, registries: Site) -> Iterator[Proxy]:
    with inside(engine.host, Proxy(registries.plain)) as made:
        yield made


def pushed(registries: Site, name: str, seed: int) -> Layout:
    """An image at the registry, put there without any engine."""
    layout = index_layout(registries.base / name, seed, ("amd64",), SIZE)
    target = f"docker://{registries.plain}/{name}:v1"
    registries.skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{layout.path}:multi", target)
    return layout


def test_cuts_are_resumed(engine: Engine, registries: Site, proxy: Proxy) -> None:
    layout = pushed(registries, "cuts", 11)
    proxy.cuts, proxy.cut_after = 5, 400_000
    out = engine.docker("pull", f"{proxy.address}/cuts:v1").stdout
    assert layout.index in out
    assert proxy.cuts == 0
    assert SIZE <= proxy.blob_bytes <= SIZE + 20_000 + 5 * SLACK


def test_a_client_that_leaves_cancels_and_the_next_one_goes_on(engine: Engine, registries: Site, proxy: Proxy) -> None:
    pushed(registries, "leaves", 12)
    proxy.delay = 0.01
    client = engine.popen("pull", f"{proxy.address}/leaves:v1")
    wait_for(lambda: proxy.blob_bytes > 500_000, "some bytes", 40)
    client.kill()
    client.wait()
    for pid in engine.host.pids_of("pull", "/leaves:v1"):  # what was killed is nsenter
        os.kill(pid, 9)

    def quiet() -> bool:
        before = proxy.blob_bytes
        threading.Event().wait(0.5)
        return proxy.blob_bytes == before

    wait_for(quiet, "the transfer to end")
    assert proxy.blob_bytes < SIZE
    proxy.delay = 0
    engine.docker("pull", f"{proxy.address}/leaves:v1")
    assert proxy.blob_bytes <= SIZE + 20_000 + 16 * SLACK


def test_corrupt_blobs_are_refused_and_never_kept(engine: Engine, registries: Site, proxy: Proxy) -> None:
    pushed(registries, "corrupt", 13)
    name = f"{proxy.address}/corrupt:v1"
    proxy.corrupt = True
    done = engine.docker("pull", name, check=False)
    assert done.returncode != 0
    assert "another digest" in done.stderr
    assert engine.docker("image", "inspect", name, check=False).returncode != 0
    proxy.corrupt = False
    engine.docker("pull", name)


def test_limits_are_waited_for(engine: Engine, registries: Site, proxy: Proxy) -> None:
    pushed(registries, "limits", 14)
    proxy.limits = 3
    engine.docker("pull", f"{proxy.address}/limits:v1")
    assert proxy.limits == 0
