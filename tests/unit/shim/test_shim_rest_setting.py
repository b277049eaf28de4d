"""``GANTRY_SHIM_REST``: a bad value must not be in the way of containers."""

from __future__ import annotations

import pytest

from shim.handover import first_seconds


@pytest.mark.parametrize(("value", "seconds"), [("", 10.0), ("0", 0.0), ("0.05", 0.05), ("300", 300.0)])
def test_seconds(value: str, seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert first_seconds(value) == seconds
    assert not capsys.readouterr().err


@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan"])
def test_nonsense_is_named_and_passed_over(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert first_seconds(value) == 10.0
    assert f"GANTRY_SHIM_REST={value!r}" in capsys.readouterr().err
