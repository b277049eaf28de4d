"""A registry's refusals become the taxonomy's errors, its words kept."""

from __future__ import annotations

import json

import pytest

from containerd_py.registry import errors
from containerd_py.registry.client import Patience, retry_after
from oci.errors import (
    FailedPrecondition,
    GantryError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)


def body(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


@pytest.mark.parametrize(
    ("status", "data", "kind", "text"),
    [
        (404, body("MANIFEST_UNKNOWN", "manifest unknown"), NotFound, "x: manifest unknown: manifest unknown"),
        (401, body("UNAUTHORIZED", "authentication required"), Unauthenticated, "authentication required"),
        (403, body("DENIED", ""), PermissionDenied, "x: denied"),
        (429, b"", ResourceExhausted, "x: unexpected status 429"),
        (500, b"<html>oops</html>", Unavailable, "oops"),
        (418, b"teapot", FailedPrecondition, "teapot"),
        (404, b'{"errors":null}', NotFound, "x"),
        (404, b'{"errors":[1]}', NotFound, "x"),
        (404, b"[]", NotFound, "x"),
        (502, b"\xff" * 10_000, Unavailable, "x"),
    ],
)
def test_answers(status: int, data: bytes, kind: type[GantryError], text: str) -> None:
    error = errors.from_answer(status, data, "x")
    assert type(error) is kind
    assert text in error.message
    assert len(error.message) < 1000


def test_denied_pulls_say_what_docker_says() -> None:
    error = errors.access_denied("app", "pull", Unauthenticated("pull app: unauthorized: authentication required"))
    assert error.message.startswith(
        "pull access denied for app, repository does not exist or may require 'docker login'"
    )
    assert isinstance(error, PermissionDenied)


@pytest.mark.parametrize(("value", "seconds"), [("3", 3), ("", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)])
def test_retry_after(value: str, seconds: float) -> None:
    assert retry_after(value) == seconds


def test_patience_grows_to_a_limit() -> None:
    patience = Patience(first_wait=1, longest_wait=8)
    waits = [patience.wait(attempt) for attempt in range(10)]
    assert 0.75 <= waits[0] <= 1.25
    assert max(waits) <= 10
