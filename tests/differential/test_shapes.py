"""Every answer has the fields, and the types, that the API promises: ours, and as a witness of the table the real ones.

Rule: the requests are those of the comparison, and one life more of a container that has everything.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.bench.peers import dockerd
from tests.differential.compare import Client
from tests.differential.requests import RICH, STEPS
from tests.differential.shapes import Version, kind_of, problems
from tests.functional.build.witnesses import newer, witness
from tests.support.engine import Engine

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="dockerd is missing: apt-get install docker.io"),
    pytest.mark.timeout(180),
]
NEWEST: Version = (1, 51)


def misshapen(client: Client, version: Version) -> Iterator[str]:
    """What is wrong with the answers that ``client`` gets."""
    for step in (*STEPS, *RICH):
        reply = client.ask(step)
        if (kind := kind_of(step.method, step.path, reply.status)) is not None:
            for problem in problems(reply.body, kind, version):
                yield f"{step.method} {step.path} ({kind}) {problem}"
        elif step.method != "HEAD" and isinstance(reply.body, dict | list):
            yield f"{step.method} {step.path}: an answer of an unknown kind: {reply.body!r}"


@pytest.fixture(scope="module")
def ours(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.mark.parametrize("version", [NEWEST, (1, 41)])
def test_our_answers_are_shaped_as_promised(ours: Engine, version: Version) -> None:
    assert list(misshapen(Client(ours.socket, version), version)) == []


def test_dockerd_keeps_to_the_same_table(busybox_tar: bytes) -> None:
    with dockerd() as peer:
        peer.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_tar)
        assert list(misshapen(Client(peer.host.outside(f"{peer.host.exec_root}/docker.sock"), (1, 41)), (1, 41))) == []


@pytest.mark.skipif(not newer(), reason="no newer dockerd: bash tests/install-newer-peers")
def test_a_newer_dockerd_keeps_to_the_same_table(busybox_tar: bytes) -> None:
    with witness() as peer:
        peer.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_tar)
        assert list(misshapen(Client(peer.host.outside(f"{peer.host.exec_root}/docker.sock"), (1, 45)), (1, 45))) == []


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
