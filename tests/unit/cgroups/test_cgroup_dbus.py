"""The D-Bus codec against a real message bus, and the systemd driver's names and properties."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runc_py.cgroups import CgroupError, systemd
from runc_py.cgroups.dbus import BusError, Connection, Reader, Variant, Writer, split_signature

BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not shutil.which("dbus-daemon"):
        pytest.skip("dbus-daemon is missing: apt-get install dbus-daemon")
    path = tmp_path_factory.mktemp("bus") / "bus"
    daemon = subprocess.Popen(
        ["dbus-daemon", "--session", "--nofork", "--print-address", f"--address=unix:path={path}"],
        stdout=subprocess.PIPE,
    )
    assert daemon.stdout is not None
    daemon.stdout.readline()
    yield path
    daemon.terminate()
    daemon.wait()
    daemon.stdout.close()


def test_a_real_bus_understands_calls_and_answers(bus: Path) -> None:
    with Connection(str(bus), peer=False) as connection:
        (names,) = connection.call(BUS, BUS_PATH, BUS, "ListNames")
        assert BUS in names
        (pid,) = connection.call(BUS, BUS_PATH, BUS, "GetConnectionUnixProcessID", "s", names[-1])
        assert pid == os.getpid()


def test_an_error_names_method_and_cause(bus: Path) -> None:
    with Connection(str(bus), peer=False) as one, pytest.raises(BusError, match=r"GetNameOwner: .*NameHasNoOwner"):
        one.call(BUS, BUS_PATH, BUS, "GetNameOwner", "s", "no.such.name")


def test_the_bus_accepts_the_body_of_a_scope(bus: Path) -> None:
    """A bus closes the connection of who sends a malformed message; a well-formed one gets "no such service"."""
    with Connection(str(bus), peer=False) as connection:
        properties = [
            ("Description", Variant("s", "x")),
            ("PIDs", Variant("au", [1, 2])),
            ("Delegate", Variant("b", True)),
            *systemd.limits_of({"memory": {"limit": 1 << 30}, "cpu": {"shares": 512}}, "v2"),
        ]
        with pytest.raises(BusError, match="ServiceUnknown"):
            connection.call(
                *("org.example.Nobody", systemd.PATH, systemd.MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))"),
                *("x.scope", "replace", properties, [("y", [("A", Variant("as", ["b"]))])]),
            )
        assert connection.call(BUS, BUS_PATH, BUS, "GetId")


def test_signals_that_come_before_an_answer_are_kept(bus: Path) -> None:
    with Connection(str(bus), peer=False) as connection:
        connection.call(BUS, BUS_PATH, BUS, "RequestName", "su", "org.example.Gantry", 0)
        while True:
            signal = connection.next_signal()
            if signal.fields[systemd.MEMBER_FIELD] == "NameAcquired" and signal.body == ("org.example.Gantry",):
                return


VALUES: st.SearchStrategy[tuple[str, Any]] = st.recursive(
    st.one_of(
        st.tuples(st.just("u"), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("x"), st.integers(-(2**63), 2**63 - 1)),
        st.tuples(st.just("y"), st.integers(0, 255)),
        st.tuples(st.just("b"), st.booleans()),
        st.tuples(st.just("s"), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
    ),
    lambda inner: st.one_of(
        inner.map(lambda one: ("v", Variant(*one))),
        inner.map(lambda one: (f"a{one[0]}", [one[1]] * 3)),
        st.tuples(inner, inner).map(lambda two: (f"({two[0][0]}{two[1][0]})", (two[0][1], two[1][1]))),
    ),
    max_leaves=6,
)


@given(VALUES, VALUES)
def test_what_is_written_is_read_again(first: tuple[str, Any], second: tuple[str, Any]) -> None:
    writer = Writer()
    for kind, value in (first, second):
        writer.write(kind, value)
    reader = Reader(bytes(writer.data))
    assert [reader.read(first[0]), reader.read(second[0])] == [first[1], second[1]]
    assert reader.position == len(writer.data)
    assert split_signature(first[0] + second[0]) == [first[0], second[0]]


@pytest.mark.parametrize(
    ("path", "slice_", "unit"),
    [
        ("", "system.slice", "runc-abc.scope"),
        ("machine.slice:libpod:abc", "machine.slice", "libpod-abc.scope"),
        (":docker:abc", "system.slice", "docker-abc.scope"),
        ("a.slice:cri:b.slice", "a.slice", "b.slice"),
    ],
)
def test_names(path: str, slice_: str, unit: str) -> None:
    assert systemd.unit_of(path, "abc", user=False) == (slice_, unit)


@pytest.mark.parametrize("path", ["/docker/abc", "a:b", "x/y.slice:a:b", "a.slice:p:../x"])
def test_wrong_names_are_refused(path: str) -> None:
    with pytest.raises(CgroupError, match=r"linux\.cgroupsPath"):
        systemd.expand_slice(systemd.unit_of(path, "abc", user=False)[0])


def test_slices_are_nested() -> None:
    assert systemd.expand_slice("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"
    assert systemd.expand_slice("-.slice") == ""
    for wrong in ("a--b.slice", "-a.slice", "a"):
        with pytest.raises(CgroupError):
            systemd.expand_slice(wrong)


def test_limits_as_properties() -> None:
    resources = {
        "memory": {"limit": 1000, "swap": 3000, "reservation": 10},
        "cpu": {"shares": 1024, "quota": 12345, "period": 100000},
        "pids": {"limit": -1},
    }
    assert {name: value.value for name, value in systemd.limits_of(resources, "v2")} == {
        "MemoryMax": 1000,
        "MemorySwapMax": 2000,
        "MemoryLow": 10,
        "TasksMax": systemd.UNLIMITED,
        "CPUWeight": 100,
        "CPUQuotaPerSecUSec": 130000,
        "CPUQuotaPeriodUSec": 100000,
    }


def test_properties_from_annotations() -> None:
    annotations = {
        "org.systemd.property.TimeoutStopSec": "uint64 5",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        "org.systemd.property.After": "['a.service', 'b.service']",
        "other": "x",
    }
    assert dict(systemd.properties_of(annotations)) == {
        "TimeoutStopUSec": Variant("t", 5_000_000),
        "CollectMode": Variant("s", "inactive-or-failed"),
        "After": Variant("as", ["a.service", "b.service"]),
    }
    with pytest.raises(CgroupError, match="cannot parse"):
        systemd.properties_of({"org.systemd.property.Weight": "much"})


def test_without_systemd_the_error_says_what_to_use() -> None:
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd runs here")
    with pytest.raises(CgroupError, match="use the cgroupfs driver"):
        systemd.systemd_manager("", "abc")
