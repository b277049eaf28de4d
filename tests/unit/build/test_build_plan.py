"""Stages: bases, names, what a target needs, and where ARGs hold."""

from __future__ import annotations

import pytest

from engine.build.dockerfile.errors import DockerfileError
from engine.build.dockerfile.parser import parse
from engine.build.plan import Plan, find_stage, plan, platform_args
from oci.errors import InvalidArgument
from oci.image import Platform

AUTOMATIC = platform_args(Platform("amd64", "linux"), Platform("arm64", "linux", variant="v8"))


def planned(text: str, target: str = "", **build_args: str) -> Plan:
    return plan(parse(text), build_args=build_args, automatic=AUTOMATIC, target=target)


def test_bases_names_and_needs() -> None:
    found = planned(
        "FROM a AS one\nRUN x\nFROM b AS two\nRUN y\nFROM one\nCOPY --from=two /x /\nCOPY --from=busybox /y /\n"
        "FROM c AS unused\n",
        target="2",
    )
    assert [(s.base, s.base_stage, s.title) for s in found.stages] == [
        ("a", None, "one"),
        ("b", None, "two"),
        ("one", 0, "stage-2"),
        ("c", None, "unused"),
    ]
    assert found.stages[2].needs == {0, 1}
    assert (found.target, found.needed) == (2, (0, 1, 2))


def test_last_stage_is_the_default_and_skips_what_it_does_not_need() -> None:
    found = planned("FROM a AS x\nFROM b AS y\nFROM y\n")
    assert found.needed == (1, 2)
    assert planned("FROM a AS x\nFROM b\n", target="x").needed == (0,)


def test_global_args_reach_from_and_defaults_expand() -> None:
    text = "ARG tag=1.0\nARG image=repo:${tag}\nFROM --platform=$TARGETPLATFORM ${image}\n"
    assert planned(text).stages[0].base == "repo:1.0"
    assert planned(text).stages[0].platform == "linux/arm64/v8"
    assert planned(text, tag="2").stages[0].base == "repo:2"


def test_mount_from_counts_as_a_need() -> None:
    found = planned("FROM a AS src\nFROM b\nRUN --mount=from=src,target=/s make\n")
    assert found.needed == (0, 1)


def test_a_stage_is_found_by_name_and_number_only_before() -> None:
    stages = planned("FROM a AS one\nFROM b\nFROM c AS two\n").stages
    found = find_stage(stages, "ONE", 2)
    assert found is not None
    assert found.number == 0
    assert find_stage(stages, "two", 2) is None
    assert find_stage(stages, "1", 2) is stages[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RUN x\n", "no build stage in current context"),
        ("ARG x\n", "FROM is missing"),
        ("FROM ${nothing}\n", "base name .* should not be blank"),
        ("FROM a\nCOPY --from=3 x y\n", "invalid from flag value 3"),
        ("FROM ${a\n", "failed to process"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        planned(text)


def test_unknown_target_names_those_there_are() -> None:
    with pytest.raises(InvalidArgument, match=r"could not be found .*one, two"):
        planned("FROM a AS one\nFROM b AS two\n", target="three")
