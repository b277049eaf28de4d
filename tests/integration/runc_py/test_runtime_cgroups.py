"""The cgroup managers by their one suite: v1 and v2 as this machine has them, and systemd's over both by a fake of it.

The virtual machine runs the same suite against v2 with all controllers and against a real systemd.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runc_py import cgroups
from runc_py.cgroups import CgroupError, CgroupManager, layout, systemd
from runc_py.cgroups.dbus import BusError
from tests.support.fake_systemd import FakeSystemd
from tests.vm.cgroup_suite import SUITE, Missing, Place, container

pytestmark = pytest.mark.root

V1_NAMES = {"io": "blkio"}
SYSTEMDS = {"name=systemd", "cpu", "cpuacct", "memory", "pids", "blkio", "devices"}
"""What systemd knows of v1; the runtime makes the container's cgroups in the other hierarchies."""
SLICE = f"gantrysuite{os.getpid()}.slice"
KINDS = ("v1", "v2", "systemd-v1", "systemd-v2", "systemd-v2-by-bus")


def found() -> layout.Host:
    """What is mounted here; the v2 tree beside v1 controllers counts too."""
    layout._current = None
    return layout.current()


def unified_mount() -> str:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return line.split()[4]
    return ""


class Cgroupfs(Place):
    """Straight in the tree of the host."""

    def __init__(self, kind: str, host: layout.Host) -> None:
        self.kind = kind
        self.host = host

    def manager(self, name: str) -> CgroupManager:
        return self.from_path(f"/{name}")

    def from_path(self, cgroups_path: str) -> CgroupManager:
        return cgroups.manager_for(cgroups_path, "suite")

    def controllers(self) -> set[str]:
        if self.version == "v1":
            return {name for hierarchy in self.host.legacy for name in hierarchy.controllers}
        names = Path(f"{self.host.unified}/cgroup.controllers").read_text().split()
        return {V1_NAMES.get(name, name) for name in names}


class BySystemd(Cgroupfs):
    """Through systemd, which here is a fake."""

    hostile = (
        *("x", "a:b", "a:b:c:d", "../x.slice:p:n", "system.slice:p:../../n", "/a:p:n", "a--b.slice:p:n"),
        *("system.slice:p/q:n", "system:p:n", "system.slice:p:n\n"),
    )

    def __init__(self, kind: str, host: layout.Host, fake: FakeSystemd) -> None:
        super().__init__(kind, host)
        self.fake = fake

    def manager(self, name: str) -> CgroupManager:
        return self.from_path(f"{SLICE}:test:{name}")

    def from_path(self, cgroups_path: str) -> CgroupManager:
        return cgroups.manager_for(cgroups_path, "suite", driver="systemd")

    def property(self, manager: CgroupManager, name: str) -> str | None:
        assert isinstance(manager, systemd.SystemdManager)
        value = self.fake.property(manager.unit, name)
        return "" if value is None else str(value)


def _of_systemd(host: layout.Host) -> list[str]:
    return [one.mount_point for one in host.legacy if SYSTEMDS & set(one.controllers)]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """One kind of manager, ready; what the kind needs and this machine lacks skips it."""
    driver, _, version = str(request.param).removesuffix("-by-bus").rpartition("-")
    host = found()
    if version == "v2" and not host.unified:
        host = layout.Host(unified_mount(), "/", ())
    if not (host.unified if version == "v2" else host.legacy):
        pytest.skip(f"no cgroup {version} is mounted here")
    monkeypatch.setattr(layout, "_current", host)
    if not driver:
        yield Cgroupfs(version, host)
        return
    roots = [host.unified] if version == "v2" else _of_systemd(host)
    private = not str(request.param).endswith("by-bus")
    with FakeSystemd(tmp_path, roots, private=private) as fake:
        monkeypatch.setattr(systemd, "RUNNING", str(tmp_path))
        monkeypatch.setattr(systemd, "sockets", lambda: (str(tmp_path / "private"), str(tmp_path / "bus")))
        yield BySystemd(f"systemd-{version}", host, fake)
    for root in (host.unified, *(one.mount_point for one in host.legacy)):
        slice_ = Path(root, SLICE)
        if root and slice_.exists():
            slice_.rmdir()


@pytest.mark.parametrize("name", SUITE)
def test_manager(place: Place, name: str) -> None:
    try:
        SUITE[name](place)
    except Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture
def fake(place: Place) -> FakeSystemd:
    """The fake behind the place."""
    if not isinstance(place, BySystemd):
        pytest.skip("for the systemd driver")
    return place.fake


def test_the_scope_is_asked_for_as_systemd_wants_it(place: Place, fake: FakeSystemd) -> None:
    resources = {"cpu": {"shares": 512, "quota": 25000, "period": 100000}, "pids": {"limit": 9}}
    if "cpu" not in place.controllers():
        resources = {}
    with container(place, "scope", resources) as (manager, worker):
        assert isinstance(manager, systemd.SystemdManager)
        ((unit, mode, properties, others),) = fake.asked("StartTransientUnit")
        values = {name: value[1] for name, value in properties}
        assert (unit, mode, others) == (manager.unit, "replace", [])
        assert values["PIDs"] == [worker.pid] and values["Slice"] == SLICE and values["Delegate"] is True
        assert values["MemoryAccounting"] is True and values["DefaultDependencies"] is False
        if resources:
            assert (values["CPUShares"], values["CPUQuotaPerSecUSec"], values["TasksMax"]) == (512, 250000, 9)
            assert values["CPUQuotaPeriodUSec"] == 100000
            manager.set({"cpu": {"quota": 10000}})  # of the period that is there
            assert fake.property(unit, "CPUQuotaPerSecUSec") == 100000
    assert fake.asked("StopUnit") == [[unit, "replace"]]
    assert fake.asked("ResetFailedUnit") == [[unit]]


def test_what_systemd_refuses_is_said_with_its_words(place: Place, fake: FakeSystemd) -> None:
    with container(place, "twice") as (manager, worker):
        assert isinstance(manager, systemd.SystemdManager)
        second = place.manager(manager.unit.removeprefix("test-").removesuffix(".scope"))
        with pytest.raises(CgroupError, match=f"cannot start systemd unit {manager.unit}: .*UnitExists"):
            second.apply(worker.pid)


def test_a_bus_that_is_gone_is_said(place: Place, fake: FakeSystemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "sockets", lambda: ("/nonexistent/private", "/nonexistent/bus"))
    with pytest.raises(BusError, match="/nonexistent/bus: No such file"):
        systemd.connect()
    monkeypatch.setattr(systemd, "RUNNING", "/nonexistent")
    with pytest.raises(CgroupError, match="needs a running systemd: use the cgroupfs driver"):
        place.manager("x")
