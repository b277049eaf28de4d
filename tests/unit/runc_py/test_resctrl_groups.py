"""Groups of resctrl in a directory that stands in for the filesystem: no machine of ours has the hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runc_py import resctrl
from runc_py.errors import InvalidSpec, RuntimeFailure


def test_a_new_group_is_the_runtimes_own(tmp_path: Path) -> None:
    planned = resctrl.planned_group({}, "box", str(tmp_path))
    assert planned == (f"{tmp_path}/box", True)
    assert resctrl.create_group({}, planned) == planned
    (tmp_path / "box/tasks").write_text("")
    planned.enter(17)
    assert (tmp_path / "box/tasks").read_text() == "17"
    (tmp_path / "box/tasks").unlink()
    planned.remove()
    planned.remove()
    assert not (tmp_path / "box").exists()


def test_a_group_that_exists_is_joined_and_left(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/schemata").write_text("")
    wanted = {"closID": "shared", "l3CacheSchema": "L3:0=f", "schemata": ["MB:0=20"]}
    planned = resctrl.planned_group(wanted, "box", str(tmp_path))
    resctrl.create_group(wanted, planned).remove()
    assert (tmp_path / "shared/schemata").read_text() == "L3:0=f\nMB:0=20\n"


def test_a_refused_schema_leaves_no_group(tmp_path: Path) -> None:
    planned = resctrl.planned_group({}, "box", str(tmp_path))
    with pytest.raises(RuntimeFailure, match=r"linux\.intelRdt: cannot write"):
        resctrl.create_group({"memBwSchema": "MB:0=20"}, planned)
    assert not (tmp_path / "box").exists()


class Record:
    """As much of a container's record as a group needs."""

    id = "box"

    def __init__(self, held: list[Any] | None = None) -> None:
        self.resctrl = held
        self.saved: list[list[Any] | None] = []

    def save(self) -> None:
        self.saved.append(self.resctrl)


def test_an_update_writes_to_the_group_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "box/schemata").touch()
    record: Any = Record([str(tmp_path / "box"), True])
    resctrl.update_group({"memBwSchema": "MB:0=50"}, record, [17], str(tmp_path))
    assert (tmp_path / "box/schemata").read_text() == "MB:0=50\n"
    assert not (tmp_path / "box/tasks").exists() and not record.saved


def test_an_update_that_fails_leaves_no_new_group(tmp_path: Path) -> None:
    record: Any = Record()
    with pytest.raises(RuntimeFailure, match="schemata"):
        resctrl.update_group({"l3CacheSchema": "L3:0=f"}, record, [17], str(tmp_path))
    assert not (tmp_path / "box").exists()
    assert record.saved == [[str(tmp_path / "box"), True], None], "recorded before it was made, and taken back"


@pytest.mark.parametrize("wanted", [{"closID": "a/b"}, {"closID": ".."}, {"schemata": "x"}, {"l3CacheSchema": "a\nb"}])
def test_what_cannot_be_meant(wanted: object) -> None:
    with pytest.raises(InvalidSpec, match=r"linux\.intelRdt"):
        resctrl.check_intel_rdt(wanted)
