"""The one suite that every cgroup manager passes: v1, v2, and systemd's over both, here and in the virtual machine.

Rule: a test knows the interface ``CgroupManager`` and a ``Place``, which knows where a kind of manager has its files.
It needs the standard library only, because it runs in the guest too. ``SUITE`` maps a test's name to the test.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runc_py import cgroups, syscalls
from runc_py.cgroups import CgroupError, CgroupManager

MIB = 1 << 20
SUITE: dict[str, Callable[[Place], None]] = {}
_PR_SET_CHILD_SUBREAPER = 36


class Missing(Exception):
    """This place lacks what the test needs."""


class Place(ABC):
    """Where one kind of manager works."""

    kind: str

    @property
    def version(self) -> str:
        """``v1`` or ``v2``."""
        return self.kind[-2:]

    @abstractmethod
    def manager(self, name: str) -> CgroupManager:
        """The manager of a container ``name``, whose cgroup does not exist yet."""

    @abstractmethod
    def from_path(self, cgroups_path: str) -> CgroupManager:
        """What ``linux.cgroupsPath`` makes here."""

    @abstractmethod
    def controllers(self) -> set[str]:
        """What can be limited here, in v1's names (``blkio``)."""

    hostile: tuple[str, ...] = ("/a/../../b", "..", "/", "a/../../../b", "/a\nb", "/a\0b")
    """Values of ``linux.cgroupsPath`` to be refused."""

    def directory(self, manager: CgroupManager, controller: str) -> Path:
        """Where a controller's files are."""
        return Path(manager.paths["" if self.version == "v2" else controller])

    def property(self, manager: CgroupManager, name: str) -> str | None:
        """What systemd was told; None where there is no systemd."""
        return None


def suite(test: Callable[[Place], None]) -> Callable[[Place], None]:
    SUITE[test.__name__] = test
    return test


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in {seconds:g} s"
        time.sleep(0.01)


class Worker:
    """A process that counts in shared memory; ``ticks`` is how far it has come."""

    def __init__(self, before: Callable[[], object] = lambda: None, *, busy: bool = False) -> None:
        self._memory = mmap.mmap(-1, 8)
        self.pid = os.fork()
        if self.pid == 0:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            try:
                before()
                self._count(busy)
            finally:
                os._exit(70)

    def _count(self, busy: bool) -> None:
        count = 0
        while True:
            count += 1
            struct.pack_into("Q", self._memory, 0, count)
            if not busy:
                time.sleep(0.002)

    @property
    def ticks(self) -> int:
        found: int = struct.unpack_from("Q", self._memory)[0]
        return found

    def moves(self) -> bool:
        """Whether it comes further within a moment."""
        before = self.ticks
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            if self.ticks != before:
                return True
            time.sleep(0.01)
        return False

    def ended_by(self) -> int:
        """The signal that ended it; 0 when it ended by itself."""
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.WTERMSIG(status)

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@contextmanager
def container(
    place: Place,
    name: str,
    resources: dict[str, Any] | None = None,
    *,
    busy: bool = False,
    before: Callable[[], object] = lambda: None,
) -> Iterator[tuple[CgroupManager, Worker]]:
    """A cgroup with one process in it, made in the order in which the runtime makes it."""
    manager = place.manager(f"suite-{os.getpid()}-{name}")
    manager.create()
    worker = Worker(before, busy=busy)
    try:
        if resources is not None:
            manager.set(resources)
        manager.apply(worker.pid)
        yield manager, worker
    finally:
        with suppress(CgroupError):
            manager.thaw()
        worker.end()
        manager.destroy()
        left = [path for path in manager.paths.values() if os.path.exists(path)]
        assert not left, left


def refused(action: Callable[[], object], *words: str) -> None:
    """``action`` must fail with a CgroupError that names ``words``."""
    try:
        action()
    except CgroupError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"it was taken; an error with {words} was due")


@suite
def entered_and_removed(place: Place) -> None:
    with container(place, "life") as (manager, worker):
        assert manager.kind == place.kind
        assert manager.pids() == manager.pids(recursive=False) == [worker.pid]
        assert all(os.path.isdir(path) for path in manager.paths.values())
        assert worker.moves()
    manager.destroy()  # twice is once
    assert manager.pids() == []


@suite
def what_the_container_made_goes_too(place: Place) -> None:
    with container(place, "deep") as (manager, _):
        for path in set(manager.paths.values()):
            os.makedirs(f"{path}/one/two")


@suite
def a_process_enters_by_itself(place: Place) -> None:
    with container(place, "enter") as (manager, worker):
        second = Worker(manager.enter)
        try:
            wait_until(lambda: second.ticks, "the second process runs")
            assert manager.pids() == sorted([worker.pid, second.pid])
        finally:
            second.end()


@suite
def a_process_begins_in_a_v2_cgroup(place: Place) -> None:
    with container(place, "clone") as (manager, worker):
        descriptor = manager.descriptor()
        if place.version == "v1":
            assert descriptor is None
            raise Missing("v1 has no CLONE_INTO_CGROUP")
        assert descriptor is not None
        pid, pidfd = syscalls.clone(0, descriptor)
        if pid == 0:
            signal.pause()
            os._exit(0)
        try:
            assert manager.pids() == sorted([worker.pid, pid])
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)
            os.close(descriptor)


@suite
def a_cgroup_with_processes_is_not_taken_over(place: Place) -> None:
    with container(place, "held") as (manager, _):
        if place.kind.startswith("systemd"):
            raise Missing("systemd makes the cgroup, with a process in it")
        refused(manager.create, "not empty", manager.paths[next(iter(manager.paths))])


def _disk() -> str:
    for path in sorted(Path("/sys/block").iterdir()):
        if path.name.startswith(("vd", "sd", "nvme")):
            return (path / "dev").read_text().strip()
    return ""


def _rate(value: int) -> list[dict[str, int]]:
    major, minor = map(int, _disk().split(":"))
    return [{"major": major, "minor": minor, "rate": value}]


Row = tuple[str, Callable[[], dict[str, Any]], tuple[str, str], tuple[str, str]]
V1_UNLIMITED = str((1 << 63) - 4096)

LIMITS: tuple[Row, ...] = (
    # controller, resources, (file and content on v1), (the same on v2)
    (
        "memory",
        lambda: {"memory": {"limit": 64 * MIB}},
        ("memory.limit_in_bytes", str(64 * MIB)),
        ("memory.max", str(64 * MIB)),
    ),
    (
        "memory",
        lambda: {"memory": {"reservation": 32 * MIB}},
        ("memory.soft_limit_in_bytes", str(32 * MIB)),
        ("memory.low", str(32 * MIB)),
    ),
    ("memory", lambda: {"memory": {"limit": -1}}, ("memory.limit_in_bytes", V1_UNLIMITED), ("memory.max", "max")),
    ("pids", lambda: {"pids": {"limit": 77}}, ("pids.max", "77"), ("pids.max", "77")),
    ("pids", lambda: {"pids": {"limit": -1}}, ("pids.max", "max"), ("pids.max", "max")),
    ("cpu", lambda: {"cpu": {"idle": 1}}, ("cpu.idle", "1"), ("cpu.idle", "1")),
    ("cpu", lambda: {"cpu": {"idle": 0}}, ("cpu.idle", "0"), ("cpu.idle", "0")),
    ("cpu", lambda: {"cpu": {"shares": 512}}, ("cpu.shares", "512"), ("cpu.weight", "59")),
    (
        "cpu",
        lambda: {"cpu": {"quota": 20000, "period": 50000}},
        ("cpu.cfs_period_us", "50000"),
        ("cpu.max", "20000 50000"),
    ),
    ("cpu", lambda: {"cpu": {"quota": 30000}}, ("cpu.cfs_quota_us", "30000"), ("cpu.max", "30000 50000")),
    ("cpu", lambda: {"cpu": {"burst": 10000}}, ("cpu.cfs_burst_us", "10000"), ("cpu.max.burst", "10000")),
    ("cpu", lambda: {"cpu": {"quota": -1}}, ("cpu.cfs_quota_us", "-1"), ("cpu.max", "max 50000")),
    ("cpuset", lambda: {"cpu": {"cpus": "0"}}, ("cpuset.cpus", "0"), ("cpuset.cpus", "0")),
    ("cpuset", lambda: {"cpu": {"mems": "0"}}, ("cpuset.mems", "0"), ("cpuset.mems", "0")),
    (
        "blkio",
        lambda: {"blockIO": {"throttleReadBpsDevice": _rate(MIB)}},
        ("blkio.throttle.read_bps_device", f"{_disk()} {MIB}"),
        ("io.max", f"{_disk()} rbps={MIB} wbps=max riops=max wiops=max"),
    ),
    (
        "hugetlb",
        lambda: {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MIB}]},
        ("hugetlb.2MB.limit_in_bytes", str(4 * MIB)),
        ("hugetlb.2MB.max", str(4 * MIB)),
    ),
)
"""Applied one after the other to the same cgroup: each leaves the others alone."""


@suite
def limits_are_read_back(place: Place) -> None:
    here, seen = place.controllers(), 0
    with container(place, "limits", {}) as (manager, _):
        expected: dict[Path, str] = {}
        for controller, resources, v1, v2 in LIMITS:
            name, value = v1 if place.version == "v1" else v2
            path = place.directory(manager, controller) / name if controller in here else Path("/nonexistent")
            if not path.exists():
                continue
            manager.set(resources())
            expected[path] = value
            for file, content in expected.items():
                assert file.read_text().strip() == content, (file, file.read_text(), content, resources())
            seen += 1
    assert seen or not here, here


@suite
def limits_hold_from_the_first_process_on(place: Place) -> None:
    if "pids" not in place.controllers():
        raise Missing("no pids controller")
    with container(place, "first", {"pids": {"limit": 55}, "memory": {"limit": 48 * MIB}}) as (manager, _):
        assert (place.directory(manager, "pids") / "pids.max").read_text() == "55\n"
        told = place.property(manager, "TasksMax")
        assert told in (None, "55")
        manager.set({"pids": {"limit": 44}})
        assert (place.directory(manager, "pids") / "pids.max").read_text() == "44\n"
        told = place.property(manager, "TasksMax")
        assert told in (None, "44")
        told = place.property(manager, "MemoryMax" if place.version == "v2" else "MemoryLimit")
        assert told in (None, str(48 * MIB))


@suite
def a_limit_without_its_controller_is_a_sentence(place: Place) -> None:
    with container(place, "lacking") as (manager, _):
        if place.version == "v1":
            paths = {name: path for name, path in manager.paths.items() if name != "memory"}
            lacking = cgroups.load({"kind": "v1", "paths": paths})
            words = ("linux.resources.memory.limit", '"memory"', "not mounted")
            refused(lambda: manager.set({"unified": {"memory.high": "1"}}), "unified", "v2")
        else:
            inner = f"{manager.paths['']}/inner"
            os.mkdir(inner)  # its parent hands no controllers down
            lacking = cgroups.load({"kind": "v2", "paths": {"": inner}})
            words = ("memory.max", "does not offer", "file")
            refused(lambda: lacking.set({"unified": {"memory.high": "1"}}), '"memory" is not available')
            refused(lambda: lacking.set({"unified": {"../pids.max": "1"}}), "slash")
            refused(lambda: lacking.set({"network": {"classID": 1}}), "v1")
        refused(lambda: lacking.set({"memory": {"limit": 64 * MIB}}), *words)


@suite
def values_out_of_range_are_refused(place: Place) -> None:
    with container(place, "range") as (manager, _):
        inner = cgroups.load({"kind": place.version, "paths": manager.paths})
        if "cpu" in place.controllers():
            refused(lambda: inner.set({"cpu": {"shares": 1}}), "minimum")
            refused(lambda: inner.set({"cpu": {"shares": 1 << 20}}), "maximum")
        refused(lambda: inner.set({"memory": {"limit": 64 * MIB, "swap": MIB}}), "swap", "less")


@suite
def a_frozen_container_stops_and_goes_on(place: Place) -> None:
    with container(place, "freeze") as (manager, worker):
        assert not manager.frozen() and worker.moves()
        manager.freeze()
        assert manager.frozen() and not worker.moves()
        manager.freeze()  # twice is once
        manager.thaw()
        assert not manager.frozen() and worker.moves()
    assert not manager.frozen()


@suite
def a_signal_reaches_all(place: Place) -> None:
    with container(place, "all") as (manager, worker):
        below = {name: f"{path}/below" for name, path in manager.paths.items()}
        for path in set(below.values()):
            os.mkdir(path)
        second = Worker(cgroups.load({"kind": place.version, "paths": _with_cpus(below)}).enter)
        wait_until(lambda: second.ticks, "the second process runs")
        assert manager.pids() == sorted([worker.pid, second.pid])
        assert manager.pids(recursive=False) == [worker.pid]
        manager.kill_all(signal.SIGTERM)
        assert (worker.ended_by(), second.ended_by()) == (signal.SIGTERM, signal.SIGTERM)
        assert not manager.frozen() and manager.pids() == []
        manager.kill_all(signal.SIGKILL)  # nobody is left to be killed


def _with_cpus(paths: dict[str, str]) -> dict[str, str]:
    """No process enters a v1 cpuset before it has processors and memory nodes."""
    if "cpuset" in paths:
        from runc_py.cgroups.v1 import inherit_cpuset

        inherit_cpuset(paths["cpuset"])
    return paths


@suite
def a_frozen_container_can_be_killed(place: Place) -> None:
    with container(place, "kill") as (manager, worker):
        manager.freeze()
        manager.kill_all(signal.SIGKILL)
        assert worker.ended_by() == signal.SIGKILL
        assert not manager.frozen() or place.version == "v2"


@suite
def a_paused_container_stays_paused_when_it_is_signalled(place: Place) -> None:
    def handled() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # what nobody handles ends a frozen v2 process at once

    with container(place, "paused", before=handled) as (manager, worker):
        wait_until(lambda: worker.ticks, "the process runs")
        manager.freeze()
        manager.kill_all(signal.SIGTERM)
        assert manager.frozen() and not worker.moves()
        manager.thaw()
        assert worker.ended_by() == 0


def _hop() -> None:
    """A process that is never the same for long: what is read of ``cgroup.procs`` is old when it is used."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if os.fork():
            os._exit(0)
    os._exit(1)


def _collect(manager: CgroupManager) -> None:
    syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.fork() == 0:
        manager.enter()
        _hop()
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    os._exit(0)


@suite
def a_process_that_forks_away_is_caught(place: Place) -> None:
    with container(place, "fork") as (manager, worker):
        collector = os.fork()
        if collector == 0:
            _collect(manager)
        wait_until(lambda: set(manager.pids()) - {worker.pid}, "the hopping process is in")
        manager.kill_all(signal.SIGKILL)
        os.waitpid(collector, 0)  # it ends when the last one has
        assert worker.ended_by() == signal.SIGKILL
        assert manager.pids() == []


@suite
def usage_is_counted(place: Place) -> None:
    here = place.controllers()
    with container(place, "usage", {"pids": {"limit": 99}} if "pids" in here else {}, busy=True) as (manager, _):

        def counted() -> int:
            found: int = manager.stats()["cpu"]["usage"]["total"]
            return found

        if place.version == "v2" or "cpuacct" in manager.paths:
            before = counted()
            wait_until(lambda: counted() > before + 10_000_000, "10 ms of processor time are counted")
        stats = manager.stats()
        assert set(stats) == {"cpu", "memory", "pids", "blkio", "hugetlb"}
        if "pids" in here:
            assert stats["pids"] == {"current": 1, "limit": 99}
        if "memory" in here:
            _memory_is_counted(manager)
    assert manager.oom_kills() == 0


def _memory_is_counted(manager: CgroupManager) -> None:
    """What a process took before it came in is counted elsewhere: this one comes first and takes then."""

    def take() -> None:
        manager.enter()
        take.held = bytearray(b"x" * 8 * MIB)  # type: ignore[attr-defined] # only to keep it

    second = Worker(take)
    try:
        wait_until(lambda: second.ticks, "the second process runs")
        usage = manager.stats()["memory"]["usage"]
        assert 8 * MIB < usage["usage"] < usage["limit"], usage
    finally:
        second.end()


@suite
def another_process_finds_it_by_what_was_saved(place: Place) -> None:
    with container(place, "saved") as (manager, worker):
        again = cgroups.load(manager.save())
        assert (again.kind, again.paths, again.save()) == (manager.kind, manager.paths, manager.save())
        again.freeze()
        assert manager.frozen() and again.pids() == [worker.pid]
        again.thaw()
        if "pids" in place.controllers():
            again.set({"pids": {"limit": 31}})
            assert (place.directory(manager, "pids") / "pids.max").read_text() == "31\n"
    refused(lambda: cgroups.load({"kind": "v9", "paths": {}}), "v9")


@suite
def sub_cgroups_are_found_and_bounded(place: Place) -> None:
    with container(place, "below") as (manager, _):
        for path in set(manager.paths.values()):
            os.mkdir(f"{path}/inner")
        inner = manager.below("inner")
        assert all(path.endswith("/inner") for path in inner.paths.values())
        for group in ("..", "inner/../..", "/../x"):
            refused(lambda group=group: manager.below(group), "..")  # type: ignore[misc] # bound at once
        refused(lambda: manager.below("nowhere"), "does not exist")
        refused(lambda: manager.below("nonsense:inner"), '"nonsense"')
        first, *others = dict.fromkeys(manager.paths.values())
        os.mkdir(f"{first}/one")
        paths = manager.below("one").paths.values()
        assert {*paths} == {f"{first}/one", *others}, "where there is none, the container's own"


@suite
def hostile_paths_are_refused(place: Place) -> None:
    for path in place.hostile:
        refused(lambda path=path: place.from_path(path), "cgroupsPath")  # type: ignore[misc] # bound at once


@suite
def devices_are_as_the_rules_say(place: Place) -> None:
    if place.version == "v1" and "devices" not in place.controllers():
        raise Missing("no devices controller")
    deny, allow = {"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 11}
    with container(place, "devices") as (manager, _):
        for rules, expected in (
            ([deny], "denied"),
            ([deny, {**allow, "access": "r"}], "opened"),
            ([deny, {**allow, "access": "w"}], "denied"),
            ([{"allow": True, "access": "rwm"}], "opened"),
            ([deny], "denied"),
        ):
            manager.set({"devices": rules})
            assert _open_within(manager, "/dev/kmsg") == expected, rules
            assert _open_within(manager, "/dev/null") == "opened"


def _open_within(manager: CgroupManager, path: str) -> str:
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            manager.enter()
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            status = 0
        except PermissionError:
            status = 1
        finally:
            os._exit(status)
    return ("opened", "denied", "failed")[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]


@suite
def the_container_is_shown_its_own(place: Place) -> None:
    with container(place, "view") as (manager, _):
        shared = manager.container_mounts(cgroup_namespace=False)
        sources = {mount.source for mount in shared.mounts if mount.type == "bind"}
        assert sources and sources <= set(manager.paths.values())
        own = manager.container_mounts(cgroup_namespace=True)
        kind = "cgroup2" if place.version == "v2" else "cgroup"
        assert any(mount.type == kind for mount in own.mounts)
        assert not any(mount.type == "bind" for mount in own.mounts)
