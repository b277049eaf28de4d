"""The same requests to Gantry and to real dockerds: answers differ where it is listed and have the promised shapes.

Rule: every engine is asked once, fresh, all of them at the same time; tests only read the answers. The table of shapes
has the real ones as its witnesses.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase

import pytest

from engine.api.compatibility import DIFFERENCES
from tests.bench.peers import Dockerd, dockerd
from tests.differential.compare import Client, Reply, differences, masked
from tests.differential.requests import RICH, STEPS, Step
from tests.differential.shapes import Version, kind_of, problems
from tests.functional.build.witnesses import newer, witness
from tests.support.engine import Engine

pytestmark = [
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="dockerd is missing: apt-get install docker.io"),
    pytest.mark.timeout(180),
]

Answers = list[tuple[Step, Reply]]
NEWEST: Version = (1, 51)
WITNESS: Version = (1, 41)
NEWER_WITNESS: Version = (1, 45)
SOMETIMES = frozenset({("GET */stats*", ".body.blkio_stats.*")})
"""Differences that timing decides: whether a container had read from a disk when it was asked."""


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


@pytest.fixture(scope="module")
def asked(make_engine: Callable[..., Engine], busybox_tar: bytes) -> Iterator[Asked]:
    """Every engine's answers."""
    with ThreadPoolExecutor() as pool:
        yield Asked(make_engine, busybox_tar, pool)


def test_answers_differ_only_where_it_is_said(asked: Asked) -> None:
    told: list[str] = []
    used: set[tuple[str, str]] = set()
    both = zip(asked.ours[WITNESS], asked.dockerd.result(), strict=True)
    for (step, our), (_, their) in list(both)[: len(STEPS)]:
        request = f"{step.method} {step.path}"
        for path, mine, other in differences(masked(our._asdict()), masked(their._asdict())):
            listed = [(r, p) for r, p, _ in DIFFERENCES if fnmatchcase(request, r) and fnmatchcase(path, p)]
            used.update(listed[:1])
            told += [] if listed else [f"{request} {path}: {mine!r}, dockerd {other!r}"]
    assert not told, "\n".join(told)
    assert {(r, p) for r, p, _ in DIFFERENCES} - used <= SOMETIMES, "listed, but no longer true"


def misshapen(answers: Answers, version: Version) -> Iterator[str]:
    """What is wrong with the answers of an engine that speaks ``version``."""
    for step, reply in answers:
        if (kind := kind_of(step.method, step.path, reply.status)) is not None:
            for problem in problems(reply.body, kind, version):
                yield f"{step.method} {step.path} ({kind}) {problem}"
        elif step.method != "HEAD" and isinstance(reply.body, dict | list):
            yield f"{step.method} {step.path}: an answer of an unknown kind: {reply.body!r}"


@pytest.mark.parametrize("version", [NEWEST, WITNESS])
def test_our_answers_are_shaped_as_promised(asked: Asked, version: Version) -> None:
    assert list(misshapen(asked.ours[version], version)) == []


def test_dockerd_keeps_to_the_same_table(asked: Asked) -> None:
    assert list(misshapen(asked.dockerd.result(), WITNESS)) == []


def test_a_newer_dockerd_keeps_to_the_same_table(asked: Asked) -> None:
    if asked.newer is None:
        pytest.skip("no newer dockerd: bash tests/install-newer-peers")
    assert list(misshapen(asked.newer.result(), NEWER_WITNESS)) == []


@pytest.mark.parametrize(
    ("value", "kind", "version", "found"),
    [
        ({"message": 1}, "Error", NEWEST, [".message: 1 is no str"]),
        ({}, "Error", NEWEST, [".message is missing"]),
        ({"message": "m", "more": 1}, "Error", NEWEST, [".more is no field of it"]),
        (None, "[str]", NEWEST, [": None is no list"]),
        (None, "?[str]", NEWEST, []),
        ([{"Size": True, "RefCount": 1}], "[VolumeUsage]", NEWEST, ["[].Size: True is no int"]),
        ({"a": {"HostIp": "", "HostPort": ""}}, "{?Binding}", NEWEST, []),
        ("2024-01-01", "time", NEWEST, [": '2024-01-01' is no time"]),
    ],
)
def test_what_the_table_notices(value: object, kind: str, version: Version, found: list[str]) -> None:
    assert list(problems(value, kind, version)) == found
