"""Space held back for bookkeeping: given up when the disk is nearly full, taken again when there is room."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.store import Store
from oci import reserve
from oci.reserve import Reserve


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the file system says is free."""
    said = {"bytes": 1 << 30}
    real = os.statvfs

    def statvfs(path: str) -> object:
        real(path)
        return SimpleNamespace(f_bavail=said["bytes"] // 4096, f_frsize=4096)

    monkeypatch.setattr(os, "statvfs", statvfs)
    return said


def test_taken_given_up_and_taken_again(tmp_path: Path, free: dict[str, int]) -> None:
    held = tmp_path / "held"
    guard = Reserve(str(held)).guard
    guard()
    assert held.stat().st_blocks * 512 >= reserve.SIZE
    free["bytes"] = reserve.LOW - 4096
    guard()
    assert not held.exists()
    free["bytes"] = reserve.PLENTY - 4096
    guard()
    assert not held.exists(), "room for the reserve alone is not plenty"
    free["bytes"] = reserve.PLENTY + 4096
    guard()
    assert held.exists()


def test_next_life_knows_that_it_is_held(tmp_path: Path, free: dict[str, int]) -> None:
    held = tmp_path / "held"
    Reserve(str(held)).guard()
    free["bytes"] = 0
    Reserve(str(held)).guard()
    assert not held.exists()


def test_a_directory_that_is_gone_is_no_error(tmp_path: Path) -> None:
    Reserve(str(tmp_path / "gone" / "held")).guard()


def test_store_holds_one(tmp_path: Path, free: dict[str, int]) -> None:
    store = Store(str(tmp_path / "engine.db"))
    store.put("kind", "id", b"x")
    assert (tmp_path / "engine.db.reserve").exists()
    store.close()
