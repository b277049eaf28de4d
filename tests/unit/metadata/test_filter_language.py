"""containerd's filter language."""

from __future__ import annotations

import pytest

from containerd_py.filters import compile_filters, lookup_in, parse
from oci.errors import InvalidArgument

FIELDS = {"name": "docker.io/library/a:1", "id": "x", "target.digest": "sha256:1"}
LABELS = {"foo": "bar", "io.x/y.z": "v w", "quote": 'a"b', "slash": "a/b"}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("id==x", True),
        ("id!=x", False),
        ("id==y", False),
        ("id", True),
        ("missing", False),
        ("missing!=x", True),
        ("missing~=x", False),
        ("name~=^docker", True),
        ("name==docker.io/library/a:1", True),
        ('name~="a:[0-9]$"', True),
        ("name~=/library\\/a/", True),
        ("name~=|library/a|", True),
        ("labels.foo==bar,id==x", True),
        ("labels.foo==bar,id==y", False),
        ('labels."io.x/y.z"=="v w"', True),
        ('labels."foo"', True),
        ('labels.quote=="a\\"b"', True),
        ('labels.foo=="\\x62\\u0061\\162"', True),
        ("target.digest==sha256:1", True),
        ("", True),
        ("id==x, name==docker.io/library/a:1", True),
        (" id == x", True),
        (' labels. "foo" ~= |^b|', True),
        ("1-id!=x", True),
    ],
)
def test_what_matches(expression: str, expected: bool) -> None:
    assert compile_filters((expression,))(lookup_in(FIELDS, LABELS)) is expected


def test_several_are_alternatives_and_none_is_all() -> None:
    lookup = lookup_in(FIELDS, LABELS)
    assert compile_filters(("id==y", "id==x"))(lookup)
    assert not compile_filters(("id==y", "id==z"))(lookup)
    assert compile_filters(())(lookup)


@pytest.mark.parametrize(
    "expression",
    [
        "=",
        "id==",
        "id=x",
        "id==x,",
        ",id",
        "id..x",
        'id=="x',
        "id==x y",
        "name~=(",
        "1id x",
        "id ,name",
        "id==x ,name",
        'id=="\\q"',
    ],
)
def test_what_is_refused_with_its_place(expression: str) -> None:
    with pytest.raises(InvalidArgument, match="filter"):
        parse(expression)
