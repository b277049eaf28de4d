"""Build checks: each rule finds what it is for, at its line, and leaves alone what is right."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from engine.build.checks import check, settings, settings_of, undefined
from engine.build.dockerfile.errors import Lines
from engine.build.dockerfile.parser import parse
from engine.build.plan import Plan, plan, platform_args
from oci.errors import InvalidArgument
from oci.image import Platform

HERE = Platform("amd64", "linux")


def planned(text: str, build_args: Mapping[str, str] | None = None) -> Plan:
    return plan(parse(text), build_args=build_args or {}, automatic=platform_args(HERE, HERE))


def found(text: str, ignored: str = "") -> list[tuple[str, int]]:
    """(rule, first line) of every finding of ``check``."""
    findings = check(parse(text), planned(text), lambda path: path == ignored)
    return [(warning.rule, warning.lines.first) for warning in findings]


@pytest.mark.parametrize(
    ("text", "rule", "line"),
    [
        ("FROM a AS Big\n", "StageNameCasing", 1),
        ("FROM a as b\n", "FromAsCasing", 1),
        ("from a AS b\n", "FromAsCasing", 1),
        ("FROM a\nRUN x \\\n\n y\n", "NoEmptyContinuation", 3),
        ("FROM a\nrun x\nENV a=b\n", "ConsistentInstructionCasing", 2),
        ("from a\nrun x\nENV a=b\n", "ConsistentInstructionCasing", 3),
        ("FROM a\nRun x\n", "ConsistentInstructionCasing", 2),
        ("FROM a AS x\nFROM b AS x\n", "DuplicateStageName", 2),
        ("FROM a AS context\n", "ReservedStageName", 1),
        ("FROM a\nRUN x\nCMD sleep 1\n", "JSONArgsRecommended", 3),
        ("FROM a\nENTRYPOINT sleep 1\n", "JSONArgsRecommended", 2),
        ("FROM a\nMAINTAINER me\n", "MaintainerDeprecated", 2),
        ("ARG V\nFROM a AS x$W\n".replace("x$W", "x") + "FROM b$W\n", "UndefinedArgInFrom", 3),
        ("FROM a\nWORKDIR w\n", "WorkdirRelativePath", 2),
        ('FROM a\nCMD ["a"]\nRUN x\nCMD ["b"]\n', "MultipleInstructionsDisallowed", 2),
        ("FROM a\nHEALTHCHECK NONE\nHEALTHCHECK NONE\n", "MultipleInstructionsDisallowed", 2),
        ("FROM a\nENV k v\n", "LegacyKeyValueFormat", 2),
        ("FROM a\nLABEL k v\n", "LegacyKeyValueFormat", 2),
        ("FROM --platform=$TARGETPLATFORM a\n", "RedundantTargetPlatform", 1),
        ("FROM --platform=${TARGETPLATFORM} a\n", "RedundantTargetPlatform", 1),
        ("FROM --platform=linux/arm64 a\n", "FromPlatformFlagConstDisallowed", 1),
        ("FROM a\nARG API_TOKEN\n", "SecretsUsedInArgOrEnv", 2),
        ("FROM a\nENV A=b DB_PASSWORD=x\n", "SecretsUsedInArgOrEnv", 2),
        ("FROM a\nEXPOSE 80/TCP\n", "ExposeProtoCasing", 2),
        ("FROM a\nEXPOSE 127.0.0.1:80:80\n", "ExposeInvalidFormat", 2),
        ("FROM a\nCOPY left /\n", "CopyIgnoredFile", 2),
        ("# this is\nARG version=1\nFROM a\n", "InvalidDefinitionDescription", 2),
        ("# a stage\nFROM a AS b\n", "InvalidDefinitionDescription", 2),
    ],
)
def test_each_rule_finds_its_mistake(text: str, rule: str, line: int) -> None:
    assert found(text, ignored="left") == [(rule, line)]


@pytest.mark.parametrize(
    "text",
    [
        "from a as b\nrun x\n",
        'FROM a AS b\nCMD ["x"]\nFROM b\nCMD ["y"]\nHEALTHCHECK CMD x\n',
        'FROM a AS b\nSHELL ["/bin/sh", "-c"]\nCMD x\nFROM b\nCMD x\n',
        "FROM a AS b\nWORKDIR /x\nWORKDIR y\nFROM b\nWORKDIR z\n",
        "ARG V=1\nFROM a:$V\n",
        "FROM --platform=$BUILDPLATFORM a\n",
        "FROM --platform=linux/arm64 a AS build-arm64\n",
        "FROM a\nENV PUBLIC_KEY=x KEYBOARD=y\nARG TOKENS\n",
        "FROM a\nEXPOSE 80/tcp 81 $P\n",
        "FROM a AS unneeded\nCMD x\nFROM a\n",
        "FROM a\nCOPY --from=b left /\nCOPY other /\n",
        "# version of it\nARG version=1\n# said of nothing\n\nFROM a\n",
    ],
)
def test_what_is_right_is_left_alone(text: str) -> None:
    assert found(text, ignored="left") == []


def test_a_default_that_makes_no_image_is_found_though_an_argument_repairs_it() -> None:
    text = "ARG NAME\nFROM busybox:$NAME\n"
    told = [warning.text for warning in check(parse(text), planned(text, {"NAME": "1"}))]
    assert told == ["Default value for ARG busybox:$NAME results in empty or invalid base image name"]
    good = "ARG NAME=1\nFROM busybox:$NAME\n"
    assert check(parse(good), planned(good, {"NAME": "2"})) == []


def names(text: str, environments: Mapping[str, tuple[str, ...]] | None = None) -> list[tuple[str, str, int]]:
    """(image, message, line) of undefined variables."""
    pairs = undefined(planned(text), {}, environments or {})
    return [(image, warning.text, warning.lines.first) for image, warning in pairs]


def test_undefined_variables() -> None:
    text = "FROM a AS b\nENV X=$NOPE\nARG KNOWN\nFROM b\nCOPY $KNOWN ${X}$Y /\nLABEL a=${Y:-none} p=$PATH\n"
    assert names(text) == [
        ("a", "Usage of undefined variable '$NOPE'", 2),
        ("a", "Usage of undefined variable '$KNOWN'", 5),
        ("a", "Usage of undefined variable '$Y'", 5),
    ]
    assert names(text, {"a": ("Y=1", "NOPE=2")}) == [("a", "Usage of undefined variable '$KNOWN'", 5)]


def test_a_name_close_by_is_suggested() -> None:
    text = "FROM a\nENV VERSION=1\nWORKDIR /x$VERSOIN\n"
    assert names(text) == [("a", "Usage of undefined variable '$VERSOIN' (did you mean $VERSION?)", 3)]
    text = "ARG VERSION=1\nFROM a$VERSOIN\n"
    (warning,) = check(parse(text), planned(text))
    assert warning == (
        "UndefinedArgInFrom",
        "FROM argument 'VERSOIN' is not declared (did you mean VERSION?)",
        Lines(2, 2),
    )


def test_the_directive_and_its_argument() -> None:
    chosen = settings_of(parse("# check=skip=A,B;error=true;experimental=CopyIgnoredFile\nFROM a\n"), {})
    assert (chosen.error, chosen.wants("A"), chosen.wants("C"), chosen.wants("CopyIgnoredFile")) == (
        True, False, True, True,
    )  # fmt: skip
    assert not chosen.wants("InvalidDefinitionDescription")
    other = settings_of(parse("# check=skip=all\nFROM a\n"), {"BUILDKIT_DOCKERFILE_CHECK": "skip=A;experimental=all"})
    assert other.wants("B") and other.wants("InvalidDefinitionDescription") and not other.error
    for wrong in ("skip", "nope=1", "error=maybe"):
        with pytest.raises(InvalidArgument):
            settings(wrong)
