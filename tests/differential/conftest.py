"""What the engines answer to all requests: each engine is asked once, all of them at the same time.

Rule: an engine is fresh when it is asked, and nobody else has it; tests only read the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from tests.bench.peers import Dockerd, dockerd
from tests.differential.compare import Client, Reply
from tests.differential.requests import RICH, STEPS, Step
from tests.differential.shapes import Version
from tests.functional.build.witnesses import newer, witness
from tests.support.engine import Engine

Answers = list[tuple[Step, Reply]]
NEWEST: Version = (1, 51)
WITNESS: Version = (1, 41)
NEWER_WITNESS: Version = (1, 45)


class Asked:
    """The answers by engine and version; ``dockerd`` is Debian's, ``newer`` the newer peer where it is here."""

    def __init__(self, ours: Callable[[], Engine], busybox: bytes, pool: ThreadPoolExecutor) -> None:
        self._busybox = busybox
        self.dockerd: Future[Answers] = pool.submit(self._of, dockerd, WITNESS)
        self.newer: Future[Answers] | None = pool.submit(self._of, witness, NEWER_WITNESS) if newer() else None
        socket = ours().socket
        self.ours = {version: _answers(socket, version) for version in (WITNESS, NEWEST)}

    def _of(self, engine: Callable[[], AbstractContextManager[Dockerd]], version: Version) -> Answers:
        with engine() as peer:
            peer.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=self._busybox)
            return _answers(peer.host.outside(f"{peer.host.exec_root}/docker.sock"), version)


def _answers(socket: str, version: Version) -> Answers:
    return Client(socket, version).ask_all((*STEPS, *RICH))


@pytest.fixture(scope="session")
def asked(make_engine: Callable[..., Engine], busybox_tar: bytes) -> Iterator[Asked]:
    """Every engine's answers."""
    with ThreadPoolExecutor() as pool:
        yield Asked(make_engine, busybox_tar, pool)
