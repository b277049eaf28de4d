"""Choosing a manager, and the v1 manager's tables without a kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runc_py.cgroups import CgroupError, layout, load, manager_for
from runc_py.cgroups.v1 import LegacyManager
from runc_py.cgroups.v2 import UnifiedManager


def test_driver_names() -> None:
    assert manager_for("", "x", driver="disabled").paths == {}
    with pytest.raises(CgroupError, match='unknown cgroup driver "cgroupsf"'):
        manager_for("", "x", driver="cgroupsf")
    with pytest.raises(CgroupError, match="cgroupfs"):
        manager_for("", "x", driver="systemd")


def test_disabled_manager_refuses_limits_instead_of_ignoring_them() -> None:
    manager = load({"kind": "disabled", "paths": {}})
    manager.create()
    manager.set({"devices": [{"allow": False}], "memory": {}})
    with pytest.raises(CgroupError, match=r"linux\.resources\.pids"):
        manager.set({"pids": {"limit": 3}})


@pytest.mark.parametrize(("kind", "unified"), [(LegacyManager, ""), (UnifiedManager, "/sys/fs/cgroup")])
def test_the_mounted_version_decides(monkeypatch: pytest.MonkeyPatch, kind: type, unified: str) -> None:
    hierarchy = layout.Hierarchy("/sys/fs/cgroup/memory", "/", ("memory",))
    host = layout.Host(unified, "/", () if unified else (hierarchy,))
    monkeypatch.setattr(layout, "_current", host)
    assert isinstance(manager_for("/docker/x", "x"), kind)


def test_unknown_saved_state() -> None:
    with pytest.raises(CgroupError, match="v9"):
        load({"kind": "v9"})


@pytest.fixture
def legacy(tmp_path: Path) -> LegacyManager:
    """Fake hierarchies of memory and cpu, without blkio."""
    for name, files in (
        ("memory", "memory.limit_in_bytes memory.memsw.limit_in_bytes memory.swappiness memory.oom_control"),
        ("cpu", "cpu.shares cpu.cfs_period_us cpu.cfs_quota_us"),
        ("freezer", "freezer.state"),
    ):
        (tmp_path / name).mkdir()
        for file in (*files.split(), "cgroup.procs", "tasks"):
            (tmp_path / name / file).write_text("")
    return LegacyManager({name: str(tmp_path / name) for name in ("memory", "cpu", "freezer")})


def record(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The writes of a manager in order, as (file name, value)."""
    writes: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "runc_py.cgroups.v1_limits.write", lambda path, value: writes.append((os.path.basename(path), str(value)))
    )
    return writes


@pytest.mark.parametrize(
    ("current", "limit", "swap", "first"),
    [
        ("9223372036854771712", 100, 200, "memory.limit_in_bytes"),
        ("1000", 100, 200, "memory.limit_in_bytes"),
        ("100", 1000, 2000, "memory.memsw.limit_in_bytes"),
        ("100", 1000, -1, "memory.memsw.limit_in_bytes"),
    ],
)
def test_swap_is_never_below_memory(
    legacy: LegacyManager, monkeypatch: pytest.MonkeyPatch, current: str, limit: int, swap: int, first: str
) -> None:
    Path(legacy.paths["memory"], "memory.limit_in_bytes").write_text(current)
    writes = record(monkeypatch)
    legacy.set({"memory": {"limit": limit, "swap": swap}})
    assert writes[0][0] == first
    assert sorted(name for name, _ in writes) == ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]


def test_zero_is_a_swappiness(legacy: LegacyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = record(monkeypatch)
    legacy.set({"memory": {"swappiness": 0, "limit": 0}})
    assert writes == [("memory.swappiness", "0")]


def test_period_before_quota(legacy: LegacyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = record(monkeypatch)
    legacy.set({"cpu": {"quota": 5000, "period": 10000, "shares": 7}})
    assert writes == [("cpu.shares", "7"), ("cpu.cfs_period_us", "10000"), ("cpu.cfs_quota_us", "5000")]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"blockIO": {"weight": 500}}, r'linux\.resources\.blockIO\.weight needs .*"blkio", which is not mounted'),
        ({"pids": {"limit": 5}}, r"linux\.resources\.pids\.limit"),
        ({"cpu": {"cpus": "0"}}, r"linux\.resources\.cpu\.cpus"),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, r"linux\.resources\.hugepageLimits needs"),
        ({"unified": {"memory.high": "1"}}, "needs cgroup v2"),
        ({"memory": {"swappiness": 101}}, "valid range is 0-100"),
    ],
)
def test_a_limit_without_its_controller_is_an_error(
    legacy: LegacyManager, resources: dict[str, Any], message: str
) -> None:
    with pytest.raises(CgroupError, match=message):
        legacy.set(resources)


def test_absent_limits_need_no_controller(legacy: LegacyManager) -> None:
    legacy.set({"blockIO": {}, "pids": {"limit": 0}, "cpu": {"cpus": ""}, "hugepageLimits": []})


def test_entering_writes_zero_to_tasks(legacy: LegacyManager) -> None:
    legacy.enter()
    for directory in legacy.paths.values():
        assert Path(directory, "tasks").read_text() == "0"
