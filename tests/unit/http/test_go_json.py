"""JSON bodies read as Go reads them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.http import gojson


class Inner(msgspec.Struct, frozen=True, rename="pascal"):
    name: str = ""
    labels: dict[str, str] | None = None


class Outer(msgspec.Struct, frozen=True, rename="pascal"):
    detach_keys: str = ""
    cmd: tuple[str, ...] | None = None
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = {}
    anything: dict[str, Any] | None = None


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('{"detachKeys": "ctrl-p"}', Outer(detach_keys="ctrl-p")),
        ('{"detachkeys": "a", "DetachKeys": "b"}', Outer(detach_keys="b")),
        ('{"DetachKeys": null, "Cmd": null}', Outer()),
        ('{"CMD": ["a", null]}', Outer(cmd=("a", ""))),
        ('{"inner": {"NAME": "x", "labels": {"A": null, "b": "B"}}}', Outer(inner=Inner("x", {"A": "", "b": "B"}))),
        ('{"many": [{"name": "x"}, null]}', Outer(many=(Inner("x"), Inner()))),
        ('{"byname": {"Key": null}}', Outer(by_name={"Key": Inner()})),
        ('{"anything": {"kEpt": null}}', Outer(anything={"kEpt": None})),
        ('{"unknown": 1}', Outer()),
    ],
)
def test_keys_match_in_any_case_and_null_is_absent(raw: str, expected: Outer) -> None:
    assert gojson.decode(raw, Outer) == expected


def test_a_wrong_type_names_its_place() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.Inner\.Name"):
        gojson.decode('{"inner": {"name": []}}', Outer)
