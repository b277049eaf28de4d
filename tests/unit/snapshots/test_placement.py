"""The hint to the file system about where snapshots go."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from containerd_py.snapshots.placement import spread


def test_the_attribute_is_set_where_the_file_system_knows_it(tmp_path: Path) -> None:
    place = tmp_path / "snapshots"
    place.mkdir()
    taken = spread(str(place))
    assert spread(str(place)) is taken, "idempotent"
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(place)], capture_output=True, text=True, check=True).stdout
    if kind.strip() == "ext2/ext3":
        shown = subprocess.run(["lsattr", "-d", str(place)], capture_output=True, text=True, check=True).stdout
        assert taken and "T" in shown.split()[0]


def test_what_cannot_be_done_is_left() -> None:
    assert spread("/proc/self") is False
    assert spread("/nonexistent") is False
    assert not os.path.exists("/nonexistent")
