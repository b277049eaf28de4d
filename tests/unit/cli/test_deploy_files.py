"""What ``gantry system install`` writes, and that it keeps what an administrator changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import units
from deploy.units import File
from oci.errors import AlreadyExists
from oci.hostpaths import HostPaths

PATHS = HostPaths("/data", "/exec")


def test_units_name_this_installation() -> None:
    by_name = {Path(file.path).name: file.text for file in units.files(PATHS, user=False)}
    assert set(by_name) == {*units.UNITS, "gantry.conf"}
    assert "/gantryd -H fd:// --data-root /data --exec-root /exec" in by_name["gantry.service"]
    assert "KillMode=process" in by_name["gantry-containerd.service"]
    assert "ListenStream=/exec/gantry.sock" in by_name["gantry.socket"]
    assert "SocketGroup=docker" in by_name["gantry.socket"]
    assert not any("{" in text for text in by_name.values())


def test_users_units_ask_for_no_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found = units.files(PATHS, user=True)
    assert all(file.path.startswith(f"{tmp_path}/systemd/user/") for file in found)
    assert not any("SocketGroup" in file.text or "multi-user" in file.text for file in found)


def test_changed_file_is_kept_and_nothing_else_is_written(tmp_path: Path) -> None:
    ours, theirs = File(str(tmp_path / "a"), "ours\n"), File(str(tmp_path / "b"), "ours\n")
    Path(theirs.path).write_text("changed by hand\n")
    with pytest.raises(AlreadyExists, match="another content"):
        units.install([ours, theirs])
    assert not Path(ours.path).exists()
    assert Path(theirs.path).read_text() == "changed by hand\n"
    assert units.install([ours, theirs], force=True) == [ours.path, theirs.path]
    assert units.install([ours, theirs]) == [], "a second time there is nothing to do"
    assert units.uninstall([ours, theirs]) == [ours.path, theirs.path]
    assert list(tmp_path.iterdir()) == []
