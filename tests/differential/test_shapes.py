"""Every answer has the fields, and the types, that the API promises: ours, and as a witness of the table the real ones.

Rule: the requests are those of the comparison, and one life more of a container that has everything.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.differential.conftest import NEWER_WITNESS, NEWEST, WITNESS, Answers, Asked
from tests.differential.shapes import Version, kind_of, problems

pytestmark = [
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="dockerd is missing: apt-get install docker.io"),
    pytest.mark.timeout(180),
]


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
