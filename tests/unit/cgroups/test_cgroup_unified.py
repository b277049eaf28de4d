"""The v2 manager against a directory tree that looks like cgroup2: which files it writes, and what it writes there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runc_py.cgroups import CgroupError, load, v2_limits
from runc_py.cgroups.v2 import UnifiedManager
from runc_py.cgroups.v2_limits import io_weight, weight_of_shares

FILES = (
    "cgroup.procs cgroup.freeze cgroup.kill memory.max memory.swap.max memory.low memory.high cpu.weight cpu.max "
    "cpu.max.burst cpu.idle cpuset.cpus cpuset.mems pids.max io.max io.weight hugetlb.2MB.max hugetlb.2MB.rsvd.max"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A fake cgroup2 mount with one container in it."""
    for directory in (tmp_path, tmp_path / "docker"):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
        (directory / "cgroup.subtree_control").write_text("memory\n")
    return tmp_path


@pytest.fixture
def manager(tree: Path) -> UnifiedManager:
    container = tree / "docker" / "x"
    container.mkdir()
    for name in FILES.split():
        (container / name).write_text("")
    (container / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (container / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (container / "cpu.max").write_text("max")
    return UnifiedManager(str(container), str(tree))


def written(manager: UnifiedManager, name: str) -> str:
    # The fake tree keeps what was there before beyond a shorter value, as files do and cgroup files do not.
    return Path(manager.path, name).read_text()


def test_create_enables_what_is_missing_in_every_parent(tree: Path) -> None:
    UnifiedManager(str(tree / "docker" / "new"), str(tree)).create()
    assert (tree / "docker" / "new").is_dir()
    for directory in (tree, tree / "docker"):
        assert (directory / "cgroup.subtree_control").read_text() == "+cpuset +cpu +io +hugetlb +pids"


def test_create_refuses_a_cgroup_with_processes(manager: UnifiedManager, tree: Path) -> None:
    Path(manager.path, "cgroup.procs").write_text("1\n2\n")
    with pytest.raises(CgroupError, match=r"not empty: 2 process\(es\)"):
        manager.create()


@pytest.mark.parametrize(
    ("resources", "name", "value"),
    [
        ({"memory": {"limit": 1 << 20}}, "memory.max", "1048576"),
        ({"memory": {"limit": 1 << 20, "swap": 3 << 20}}, "memory.swap.max", "2097152"),
        ({"memory": {"limit": 1 << 20, "swap": 1 << 20}}, "memory.swap.max", "0"),
        ({"memory": {"limit": -1}}, "memory.swap.max", "max"),
        ({"memory": {"limit": 1 << 20, "swap": -1}}, "memory.swap.max", "max"),
        ({"memory": {"reservation": 4096}}, "memory.low", "4096"),
        ({"cpu": {"shares": 1024}}, "cpu.weight", "100"),
        ({"cpu": {"quota": 50000, "period": 200000}}, "cpu.max", "50000 200000"),
        ({"cpu": {"period": 50000}}, "cpu.max", "max 50000"),
        ({"cpu": {"burst": 10}}, "cpu.max.burst", "10"),
        ({"cpu": {"idle": 1}}, "cpu.idle", "1"),
        ({"cpu": {"cpus": "0-1"}}, "cpuset.cpus", "0-1"),
        ({"pids": {"limit": 9}}, "pids.max", "9"),
        ({"pids": {"limit": -1}}, "pids.max", "max"),
        ({"blockIO": {"weight": 1000}}, "io.weight", "default 10000"),
        ({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 10}]}}, "io.weight", "8:0 1"),
        ({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 7}]}}, "io.max", "8:1 rbps=7"),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}, "hugetlb.2MB.rsvd.max", "4"),
        ({"unified": {"memory.high": "5000"}}, "memory.high", "5000"),
    ],
)
def test_limits(manager: UnifiedManager, resources: dict[str, Any], name: str, value: str) -> None:
    manager.set(resources)
    assert written(manager, name) == value


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"memory": {"swap": 1 << 20}}, "without a memory limit"),
        ({"memory": {"limit": 5, "swap": 4}}, "must not be less"),
        ({"cpu": {"shares": 1}}, "minimum allowed cpu-shares is 2"),
        ({"cpu": {"shares": 300000}}, "maximum allowed cpu-shares is 262144"),
        ({"cpu": {"realtimeRuntime": 1}}, "needs cgroup v1"),
        ({"network": {"classID": 1}}, "needs cgroup v1"),
        ({"unified": {"../x": "1"}}, "without a slash"),
        ({"unified": {"rdma.max": "1"}}, 'controller "rdma" is not available'),
        ({"pids": {"limit": "many"}}, "limit must be an integer"),
    ],
)
def test_refused_limits(manager: UnifiedManager, resources: dict[str, Any], message: str) -> None:
    with pytest.raises(CgroupError, match=message):
        manager.set(resources)


def test_error_names_file_value_and_cause(manager: UnifiedManager) -> None:
    os.unlink(f"{manager.path}/pids.max")
    with pytest.raises(CgroupError, match=r'cannot write "3" to .*/docker/x/pids\.max: .*does not offer the file'):
        manager.set({"pids": {"limit": 3}})


def test_check_before_update(manager: UnifiedManager) -> None:
    Path(manager.path, "memory.current").write_text("5000\n")
    with pytest.raises(CgroupError, match="below the present usage 5000"):
        manager.set({"memory": {"limit": 4000, "checkBeforeUpdate": True}})


def test_devices_are_left_alone_in_a_user_namespace(manager: UnifiedManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v2_limits, "in_user_namespace", lambda: True)
    manager.set({"devices": [{"allow": False, "access": "rwm"}]})


def test_kill_uses_the_kernels_own_switch(manager: UnifiedManager) -> None:
    Path(manager.path, "cgroup.procs").write_text("999999\n")
    manager.kill_all(9)
    assert written(manager, "cgroup.kill") == "1"


def test_freeze_waits_for_the_event(manager: UnifiedManager) -> None:
    Path(manager.path, "cgroup.events").write_text("frozen 1\n")
    manager.freeze()
    assert manager.frozen()


def test_stats(manager: UnifiedManager) -> None:
    files = {
        "cpu.stat": "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 2\nnr_throttled 1\nthrottled_usec 5\n",
        "memory.stat": "anon 10\nfile 20\n",
        "memory.current": "30\n",
        "memory.max": "max\n",
        "memory.events": "max 6\noom_kill 2\n",
        "pids.current": "3\n",
        "pids.max": "max\n",
        "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
    }
    for name, text in files.items():
        Path(manager.path, name).write_text(text)
    stats = manager.stats()
    assert stats["cpu"]["usage"] == {"total": 7000, "kernel": 3000, "user": 4000}
    assert stats["cpu"]["throttling"] == {"periods": 2, "throttledPeriods": 1, "throttledTime": 5000}
    assert stats["memory"]["cache"] == 20
    assert stats["memory"]["usage"] == {"limit": (1 << 64) - 1, "usage": 30, "max": 0, "failcnt": 6}
    assert stats["pids"] == {"current": 3, "limit": 0}
    assert {"major": 8, "minor": 0, "op": "Write", "value": 2} in stats["blkio"]["ioServiceBytesRecursive"]
    assert manager.oom_kills() == 2


def test_container_sees_its_own_tree(manager: UnifiedManager) -> None:
    private = manager.container_mounts(cgroup_namespace=True)
    assert [(mount.name, mount.type) for mount in private.mounts] == [("", "cgroup2")]
    shared = manager.container_mounts(cgroup_namespace=False)
    assert [(mount.type, mount.source) for mount in shared.mounts] == [("bind", manager.path)]


def test_saved_manager_comes_back(manager: UnifiedManager) -> None:
    again = load(manager.save())
    assert isinstance(again, UnifiedManager)
    assert again.path == manager.path


def test_destroy_is_idempotent(tree: Path) -> None:
    container = tree / "docker" / "gone"
    (container / "inner" / "deeper").mkdir(parents=True)
    manager = UnifiedManager(str(container), str(tree))
    manager.destroy()
    manager.destroy()
    assert not container.exists()


def test_weights_keep_their_fixed_points() -> None:
    assert [weight_of_shares(shares) for shares in (2, 1024, 262144)] == [1, 100, 10000]
    assert [io_weight(weight) for weight in (10, 1000)] == [1, 10000]
