"""Challenges are read as RFC 7235 has them, and answered with what is known."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_py.registry import auth


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Bearer realm="https://auth/token",service="r",scope="repository:a:pull,push"',
         [("bearer", {"realm": "https://auth/token", "service": "r", "scope": "repository:a:pull,push"})]),
        ('Basic realm="say \\"please\\", and wait"', [("basic", {"realm": 'say "please", and wait'})]),
        ("Basic", [("basic", {})]),
        ('Basic realm=x, Bearer realm = "y"', [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        ("Negotiate, Basic realm=a", [("basic", {"realm": "a"})]),
        ("", []),
        ("=,=,=", []),
    ],
)  # fmt: skip
def test_challenges(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    found = auth.challenges([header])
    assert [one for one in found if one.scheme != "negotiate"] == [auth.Challenge(*one) for one in expected]


@given(st.text(max_size=60))
def test_no_header_is_a_trap(header: str) -> None:
    assert all(challenge.scheme for challenge in auth.challenges([header]))


def test_basic_holds_user_and_password() -> None:
    value = auth.Credentials("ali", "päss:wörd").basic
    assert base64.b64decode(value.removeprefix("Basic ")).decode() == "ali:päss:wörd"


def test_scopes_are_merged_once_each() -> None:
    assert auth.merged_scopes(["b", "a"], "c a") == ("a", "b", "c")
    assert auth.scope_of("library/x") == "repository:library/x:pull"


def test_token_requests() -> None:
    challenge = auth.Challenge("bearer", {"realm": "https://auth", "service": "r"})
    assert auth.token_query(challenge, ["s1", "s2"], "ali") == [
        ("service", "r"),
        ("scope", "s1"),
        ("scope", "s2"),
        ("account", "ali"),
    ]
    form = auth.refresh_form(challenge, ["s1", "s2"], "secret")
    assert (form["grant_type"], form["scope"], form["service"]) == ("refresh_token", "s1 s2", "r")


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ({"token": "a", "access_token": "b"}, "a"),
        ({"access_token": "b"}, "b"),
        ({}, None),
        ({"token": ""}, None),
        ({"token": 5}, None),
    ],
)
def test_tokens_of_answers(answer: dict[str, object], value: str | None) -> None:
    token = auth.token_of(answer)
    assert (token.value if token else None) == value


def test_a_token_is_not_used_in_its_last_moments() -> None:
    fresh = auth.token_of({"token": "a", "expires_in": 300})
    assert fresh is not None
    assert fresh.good()
    assert not fresh._replace(ends=fresh.ends - 300 + auth.EARLY / 2).good()
