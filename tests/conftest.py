"""Fixtures for the whole suite: which tests need root, private hosts, and an engine with a busybox image."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.engine import Engine
from tests.support.host import PrivateHost
from tests.support.images import busybox_rootfs

try:
    from hypothesis import settings
except ModuleNotFoundError:  # in the virtual machine, whose tests need none
    pass
else:
    # A change is not refused for an old defect that chance finds that day: exploring is a run of its own.
    settings.register_profile("steady", derandomize=not os.environ.get("GANTRY_FUZZ"))
    settings.load_profile("steady")

ROOT_DIRECTORIES = ("integration", "functional", "differential", "interop", "security", "chaos")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything but unit tests needs root; without it those are skipped, with the reason said."""
    # The longest test first: of several processes none is left alone with it at the end.
    items.sort(key=lambda item: "tests/vm/" not in str(item.path))
    for item in items:
        if any(f"tests/{name}/" in str(item.path) for name in ROOT_DIRECTORIES):
            item.add_marker(pytest.mark.root)
        if item.get_closest_marker("root") is not None and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: namespaces, mounts and cgroups"))


@pytest.fixture(scope="session")
def busybox_tar() -> bytes:
    """The root file system of the ``busybox`` image."""
    return busybox_rootfs()


@pytest.fixture(scope="session")
def make_engine(busybox_tar: bytes) -> Iterator[Callable[..., Engine]]:
    """A factory of running engines, each in a private host of its own, with a ``busybox`` image.

    At the end of the session each engine is shut down and what it left behind is asserted to be nothing.
    """
    assert shutil.which("docker"), "the docker command is missing: install docker-cli or docker.io"
    with ExitStack() as hosts:
        engines: list[Engine] = []

        def make(*flags: str, image: bool = True, **variables: str) -> Engine:
            engine = Engine(hosts.enter_context(PrivateHost(variables=variables)), *flags)
            engine.start()
            engines.append(engine)
            if image:
                engine.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_tar)
            return engine

        yield make
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            assert list(pool.map(_left_by, engines)) == [{}] * len(engines)


def _left_by(engine: Engine) -> dict[str, Any]:
    """What the engine leaves when it is shut down."""
    engine.down()
    return engine.host.leftovers()


@pytest.fixture(scope="session")
def engine(make_engine: Callable[..., Engine]) -> Engine:
    """The engine most functional tests share."""
    return make_engine()
