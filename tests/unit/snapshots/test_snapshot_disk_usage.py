"""What a snapshot takes on disk, and where overlay merges, without any mount."""

from __future__ import annotations

import os
from pathlib import Path

from containerd_py.snapshots.overlay import OverlaySnapshotter
from containerd_py.snapshots.usage import disk_usage


def test_hard_links_count_once_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_bytes(b"x" * 100_000)
    before = disk_usage(str(tmp_path))
    assert before[1] == 3
    assert before[0] >= 100_000
    os.link(tmp_path / "d/a", tmp_path / "b")
    assert disk_usage(str(tmp_path)) == before
    os.symlink("/usr", tmp_path / "link")
    assert disk_usage(str(tmp_path))[1] == 4


def test_a_directory_below_a_file_or_a_link_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "file").touch()
    os.symlink("d", tmp_path / "link")
    lookup = OverlaySnapshotter._lookup
    assert lookup(str(tmp_path), "/d/e") is True
    assert lookup(str(tmp_path), "") is True
    assert lookup(str(tmp_path), "/d/f") is None
    assert lookup(str(tmp_path), "/file/x") is False
    assert lookup(str(tmp_path), "/link/e") is False
