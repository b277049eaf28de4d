"""Cgroups on the kernel that runs the tests, under a directory of the test's own."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from runc_py import bpf
from runc_py.cgroups import CgroupError, CgroupManager, layout, load, manager_for
from runc_py.cgroups.devices import play

legacy_only = pytest.mark.skipif(bool(layout.current().unified), reason="this host has cgroup v2, the test is for v1")


@pytest.fixture
def manager() -> Iterator[CgroupManager]:
    """A created manager; everything it made is gone afterwards."""
    parent = f"gantry-test-{uuid.uuid4().hex[:8]}"
    manager = manager_for(f"/{parent}/c", "c")
    manager.create()
    yield manager
    manager.kill_all(signal.SIGKILL)
    manager.destroy()
    for directory in set(manager.paths.values()):
        assert not os.path.exists(directory)
        os.rmdir(os.path.dirname(directory))


@pytest.fixture
def spawn() -> Iterator[Callable[[Callable[[], None]], int]]:
    """Fork a child that runs a function and then sleeps; children are reaped at the end."""
    children: list[int] = []

    def start(before: Callable[[], None]) -> int:
        ready, done = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                before()
                os.write(done, b"+")
                time.sleep(60)
            finally:
                os._exit(1)
        os.close(done)
        children.append(pid)
        assert os.read(ready, 1) == b"+"
        os.close(ready)
        return pid

    yield start
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


Spawn = Callable[[Callable[[], None]], int]


def cgroups_of(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        return layout.own_cgroups(file.read())


def test_apply_and_enter_reach_every_hierarchy(manager: CgroupManager, spawn: Spawn) -> None:
    entered = spawn(manager.enter)
    moved = spawn(lambda: None)
    manager.apply(moved)
    assert manager.pids() == sorted((entered, moved))
    for pid in (entered, moved):
        for controller, directory in manager.paths.items():
            assert cgroups_of(pid)[controller] and directory.endswith(cgroups_of(pid)[controller])


@legacy_only
def test_limits_arrive_and_can_be_changed(manager: CgroupManager) -> None:
    def value(controller: str, file: str) -> str:
        with open(f"{manager.paths[controller]}/{file}", encoding="ascii") as handle:
            return handle.read().strip()

    mib = 1 << 20
    manager.set({"memory": {"limit": 64 * mib, "swap": 128 * mib, "swappiness": 0}, "pids": {"limit": 20}})
    manager.set({"cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"}})
    assert value("memory", "memory.limit_in_bytes") == str(64 * mib)
    assert value("memory", "memory.memsw.limit_in_bytes") == str(128 * mib)
    assert value("memory", "memory.swappiness") == "0"
    assert value("cpu", "cpu.cfs_quota_us") == "50000"
    assert value("cpuset", "cpuset.cpus") == "0"
    assert value("pids", "pids.max") == "20"
    for limit, swap in ((256, 512), (32, 32), (-1, 0)):
        manager.set({"memory": {"limit": limit if limit < 0 else limit * mib, "swap": swap * mib}})
    assert int(value("memory", "memory.memsw.limit_in_bytes")) > 1 << 60


@legacy_only
def test_pids_limit_stops_forks(manager: CgroupManager, spawn: Spawn) -> None:
    manager.set({"pids": {"limit": 1}})

    def fork_once() -> None:
        manager.enter()
        with pytest.raises(BlockingIOError):
            os.fork()

    spawn(fork_once)


@legacy_only
def test_devices_are_closed_but_for_the_defaults(manager: CgroupManager, spawn: Spawn) -> None:
    manager.set({"devices": [{"allow": False, "access": "rwm"}]})

    def use_devices() -> None:
        manager.enter()
        os.close(os.open("/dev/null", os.O_RDWR))
        with pytest.raises(PermissionError):
            os.open("/dev/kmsg", os.O_RDONLY)

    spawn(use_devices)
    manager.set({"devices": [{"allow": False}, {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}]})

    def use_kernel_log() -> None:
        manager.enter()
        os.close(os.open("/dev/kmsg", os.O_RDONLY))

    spawn(use_kernel_log)


def test_freeze_stops_and_thaw_goes_on(manager: CgroupManager, spawn: Spawn) -> None:
    counter, count = os.pipe()

    def tick() -> None:
        manager.enter()
        if os.fork() == 0:
            while True:
                os.write(count, b".")
                time.sleep(0.002)

    spawn(tick)
    assert os.read(counter, 1) == b"."
    manager.freeze()
    assert manager.frozen()
    os.set_blocking(counter, False)
    while True:
        try:
            os.read(counter, 65536)
        except BlockingIOError:
            break
    time.sleep(0.05)
    with pytest.raises(BlockingIOError):
        os.read(counter, 1)
    load(manager.save()).thaw()
    assert not manager.frozen()
    time.sleep(0.05)
    assert os.read(counter, 1) == b"."
    os.close(counter)
    os.close(count)


@pytest.mark.parametrize("paused", [False, True])
def test_kill_all_ends_grandchildren_and_paused_ones(manager: CgroupManager, spawn: Spawn, paused: bool) -> None:
    def breed() -> None:
        manager.enter()
        for _ in range(5):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)

    spawn(breed)
    assert len(manager.pids()) == 6
    if paused:
        manager.freeze()
    manager.kill_all(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while [pid for pid in manager.pids() if not is_zombie(pid)] and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not [pid for pid in manager.pids() if not is_zombie(pid)]


def is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_destroy_names_who_is_still_there(
    manager: CgroupManager, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = spawn(manager.enter)
    monkeypatch.setattr("runc_py.cgroups.v1.DESTROY_SECONDS", 0.02)
    monkeypatch.setattr("runc_py.cgroups.v2.DESTROY_SECONDS", 0.02)
    with pytest.raises(CgroupError, match=rf"processes are still in it: {pid}"):
        manager.destroy()


def test_destroy_takes_what_the_container_made(manager: CgroupManager) -> None:
    for directory in set(manager.paths.values()):
        os.makedirs(f"{directory}/inner/deeper")
    manager.destroy()
    assert not any(map(os.path.exists, manager.paths.values()))
    manager.destroy()


def test_create_twice_is_allowed_until_somebody_is_in(manager: CgroupManager, spawn: Spawn) -> None:
    manager.create()
    spawn(manager.enter)
    with pytest.raises(CgroupError, match="not empty"):
        manager.create()


@legacy_only
def test_stats_and_mounts(manager: CgroupManager, spawn: Spawn) -> None:
    spawn(manager.enter)
    manager.set({"pids": {"limit": 7}})
    stats = manager.stats()
    assert stats["pids"] == {"current": 1, "limit": 7}
    assert stats["cpu"]["usage"]["total"] > 0
    assert stats["memory"]["usage"]["limit"] > 0
    assert manager.oom_kills() == 0
    mounts = manager.container_mounts(cgroup_namespace=False).mounts
    assert mounts[0].type == "tmpfs"
    assert {mount.source for mount in mounts[1:]} == set(manager.paths.values())


def unified_mount() -> str:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return next((line.split()[4] for line in file if " - cgroup2 " in line), "")


@pytest.mark.skipif(not unified_mount(), reason="no cgroup2 tree is mounted: device programs cannot be attached")
def test_device_program_rules_a_v2_cgroup_and_is_replaced(spawn: Spawn) -> None:
    directory = f"{unified_mount()}/gantry-test-{uuid.uuid4().hex[:8]}"
    os.mkdir(directory)
    try:
        bpf.attach_device_program(directory, play([{"allow": True, "access": "rwm"}]))
        bpf.attach_device_program(directory, play([{"allow": False, "access": "rwm"}]))
        descriptor = os.open(directory, os.O_RDONLY)
        assert len(bpf.query(descriptor)) == 1
        os.close(descriptor)

        def use_devices() -> None:
            with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")
            os.close(os.open("/dev/null", os.O_RDWR))
            with pytest.raises(PermissionError):
                os.open("/dev/kmsg", os.O_RDONLY)

        pid = spawn(use_devices)
        with open(f"{unified_mount()}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(pid))
    finally:
        os.rmdir(directory)
