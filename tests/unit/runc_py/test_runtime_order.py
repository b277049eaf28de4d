"""What a container's first process does, in order: read from the plan and from a recording double, without root."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from runc_py import capabilities, child, create, process
from runc_py.cgroups import ContainerMounts
from runc_py.cgroups.v1 import LegacyManager
from runc_py.mount_options import parse_options
from runc_py.namespaces import PROC_NAMES
from runc_py.rootfs import plan_rootfs
from runc_py.runtime import Runtime
from runc_py.template import default_spec
from tests.unit.runc_py.recording import recorded

USABLE = (1 << 41) - 1
USER: dict[str, Any] = {
    "user": {"uid": 1000, "gid": 1000, "additionalGids": [5]},
    "capabilities": {name: ["CAP_KILL"] for name in ("bounding", "effective", "permitted")},
    "noNewPrivileges": True,
}


def described(spec: dict[str, Any]) -> tuple[list[str], list[str]]:
    plan = plan_rootfs(spec, "/bundle", ContainerMounts((), ()), False)
    return [one.describe() for one in plan.setup], [one.describe() for one in plan.finish]


def test_the_plan_reads_like_the_spec() -> None:
    spec = default_spec()
    spec["process"]["cwd"] = "/work"
    spec["mounts"].append({"destination": "data", "type": "bind", "source": "data", "options": ["rbind", "ro"]})
    setup, finish = described(spec)
    assert setup[:3] == ["mount proc on /proc", "mount tmpfs on /dev", "mount devpts on /dev/pts"]
    assert setup[7] == "bind /bundle/data on /data"
    assert setup[8] == "device /dev/null c 1:3"
    assert setup[-1] == "directory /work"
    assert finish[0] == "read-only /proc/bus"
    assert finish[-2].startswith("mask /proc/acpi")
    assert finish[-1] == "remount / read-only"


def test_devices_come_after_a_dev_that_ends_up_read_only() -> None:
    spec = default_spec()
    (dev,) = [entry for entry in spec["mounts"] if entry["destination"] == "/dev"]
    dev["options"].append("ro")
    setup, finish = described(spec)
    assert setup.index("mount tmpfs on /dev") < setup.index("device /dev/null c 1:3")
    assert "remount /dev read-only" in finish


def test_a_bound_dev_gets_no_devices() -> None:
    spec = default_spec()
    spec["mounts"] = [{"destination": "/dev/", "type": "bind", "source": "/dev", "options": ["rbind"]}]
    assert not [line for line in described(spec)[0] if line.startswith("device")]


def test_becoming_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "give_stdio", lambda uid, gid: None)
    with recorded(monkeypatch) as recorder:
        process.become(USER, USABLE, userns=False, privileges=0)
    assert recorder.names() == [
        "PR_SET_NO_NEW_PRIVS",
        "PR_CAPBSET_DROP",  # while CAP_SETPCAP is still there
        "PR_SET_KEEPCAPS",
        "setgroups",
        "setresgid",
        "setresuid",
        "PR_SET_KEEPCAPS",
        "PR_SET_DUMPABLE",  # the change of user has made it dumpable
        "capset",
        "umask",
    ]
    assert "setgroups([5])" in recorder.calls
    assert f"PR_CAPBSET_DROP({capabilities.NUMBERS['CAP_KILL']})" not in recorder.calls


class _Filter(child.SeccompFilter):
    def __init__(self, calls: list[str]) -> None:
        super().__init__(b"", 0)
        self._calls = calls

    def install(self) -> int | None:
        self._calls.append("seccomp()")
        return None


@pytest.mark.parametrize(
    ("no_new_privileges", "order"),
    [(True, ["capset", "PR_CAP_AMBIENT", "seccomp"]), (False, ["capset", "seccomp", "capset", "PR_CAP_AMBIENT"])],
)
def test_the_filter_comes_last_unless_it_needs_a_privilege(
    monkeypatch: pytest.MonkeyPatch, no_new_privileges: bool, order: list[str]
) -> None:
    sets = capabilities.CapabilitySets(USER["capabilities"], USABLE)
    with recorded(monkeypatch) as recorder:
        filter_ = _Filter(recorder.calls)
        child.lock_down(filter_, sets, child.privileges_needed(filter_, no_new_privileges))
    assert recorder.names() == order


def test_a_child_hides_before_it_does_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import sys

    monkeypatch.setattr(process, "reset_signals", lambda: None)
    monkeypatch.setattr(gc, "disable", lambda: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    with recorded(monkeypatch) as recorder:
        child.detach("name", None, [5, 9], 1)
        assert not sys.path and not sys.meta_path
    assert recorder.calls[0] == "PR_SET_DUMPABLE(0)"
    assert recorder.calls[-3:] == ["close_range(4, 4)", "close_range(6, 8)", "close_range(10)"]


@pytest.mark.parametrize(
    ("options", "member", "value"),
    [
        (["ro", "rw"], "read_only", False),
        (["rro"], "read_only", True),
        (["bind", "rbind"], "recursive", True),
        (["idmap", "ridmap"], "idmap", "ridmap"),
        (["size=1k", "defaults", "nosuid"], "data", ("size=1k",)),
        (["src-nofollow"], "source_nofollow", True),
    ],
)
def test_mount_options(options: list[str], member: str, value: object) -> None:
    assert getattr(parse_options(options), member) == value


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ([], 0),
        (["nosuid", "noexec", "nodev", "ro", "relatime"], 0xF),
        (["strictatime", "nodiratime", "nosymfollow", "mode=755"], 1 << 24 | 0x800 | 0x100),
        (["noatime", "relatime"], 0),
        (["rro"], None),
        (["rprivate"], None),
        (["sync"], None),
    ],
)
def test_attributes_as_flags_of_the_old_call(options: list[str], flags: int | None) -> None:
    assert parse_options(options).classic == flags


def without(kind: str, spec: dict[str, Any]) -> None:
    spec["linux"]["namespaces"] = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != kind]


def joined(kind: str, spec: dict[str, Any]) -> None:
    without(kind, spec)
    spec["linux"]["namespaces"].append({"type": kind, "path": f"/proc/self/ns/{PROC_NAMES.get(kind, kind)}"})


@pytest.mark.parametrize(
    ("change", "ahead"),
    [
        (lambda _: None, True),
        (lambda spec: joined("network", spec), True),
        (lambda spec: joined("mount", spec), False),  # paths mean something else afterwards
        (lambda spec: joined("pid", spec), False),
        (lambda spec: spec["linux"]["namespaces"].append({"type": "user"}), False),  # nobody until it is mapped
        (lambda spec: spec["linux"]["namespaces"].append({"type": "time"}), False),
        (lambda spec: spec["mounts"][1]["options"].append("tmpcopyup"), False),  # the copy is the container's memory
    ],
)
def test_init_goes_ahead_of_its_cgroups_only_where_nothing_depends_on_them(
    change: Callable[[dict[str, Any]], None], ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    spec = default_spec()
    change(spec)
    creation = create.Creation(Runtime("/nonexistent"), "x", "/nonexistent", "/nonexistent", spec)
    creation.manager = LegacyManager({"devices": "/nonexistent"})
    creation.namespaces.open()
    try:
        assert creation._init_goes_ahead() is ahead
    finally:
        creation.namespaces.close()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not creation._init_goes_ahead()
