"""What a spec may say, and what it becomes before anything is done: namespaces, options, order of operations."""

from __future__ import annotations

from typing import Any

import pytest

from runc_py import capabilities, main, messages, mount_options, names, namespaces, operations, rootfs, syscalls, update
from runc_py import spec as specs
from runc_py.commands import parse_signal
from runc_py.errors import InvalidSpec, ProcessFailure, RuntimeFailure
from runc_py.features import supported_features
from runc_py.template import default_spec


def changed(path: str, value: Any) -> dict[str, Any]:
    """The default spec with one member replaced."""
    document = default_spec()
    *parents, last = path.split(".")
    place = document
    for name in parents:
        place = place[name]
    place[last] = value
    return document


@pytest.mark.parametrize("rootless", [False, True])
def test_the_default_spec_is_valid(rootless: bool) -> None:
    specs.validate_spec(default_spec(rootless=rootless))


@pytest.mark.parametrize(
    ("path", "value", "culprit"),
    [
        ("ociVersion", "2.0", "ociVersion"),
        ("root.path", "", "root.path"),
        ("process.args", [], "process.args"),
        ("process.args", ["a\0b"], "process"),
        ("process.cwd", "relative", "process.cwd"),
        ("process.user", {"uid": -1}, "process.user.uid"),
        ("process.user", {"uid": 0, "additionalGids": ["5"]}, r"process.user.additionalGids\[0\]"),
        ("process.scheduler", {"policy": "SCHED_NONE"}, "process.scheduler.policy"),
        ("process.scheduler", {"policy": "SCHED_DEADLINE", "runtime": 5000}, "process.scheduler: .*deadline"),
        ("process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 8}, "process.ioPriority.priority"),
        ("process.execCPUAffinity", {"initial": "3-1"}, "process.execCPUAffinity.initial"),
        ("linux.namespaces", [{"type": "nope"}], r"linux.namespaces\[0\].type"),
        ("linux.namespaces", [{"type": "pid"}, {"type": "pid"}], r"linux.namespaces\[1\].type"),
        ("linux.namespaces", [{"type": "pid", "path": "x"}], r"linux.namespaces\[0\].path"),
        ("linux.sysctl", {"kernel.panic": "1"}, "linux.sysctl"),
        ("linux.sysctl", {"net/../kernel/panic": "1"}, "linux.sysctl"),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "linux.uidMappings"),
        ("linux.timeOffsets", {"boottime": {"secs": 1}}, "linux.timeOffsets"),
        ("linux.intelRdt", {"closID": "../x"}, "linux.intelRdt.closID"),
        ("linux.memoryPolicy", {"mode": "MPOL_BIND"}, "linux.memoryPolicy.nodes"),
        ("linux.netDevices", {"a/b": {}}, "linux.netDevices"),
        ("mounts", [{"destination": ""}], r"mounts\[0\].destination"),
    ],
)
def test_a_wrong_spec_is_refused_by_path(path: str, value: Any, culprit: str) -> None:
    with pytest.raises(InvalidSpec, match=culprit):
        specs.validate_spec(changed(path, value))


@pytest.mark.parametrize("name", ["a", "A-b_c.d+e", "0123456789abcdef" * 4])
def test_good_ids(name: str) -> None:
    assert names.container_id(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".seccomp", "a/b", "a b", "é", "a\n", "x" * 1025])
def test_bad_ids(name: str) -> None:
    with pytest.raises(InvalidSpec, match=r"invalid container ID format: \".*\": .* in a container ID"):
        names.container_id(name)


def test_mount_options_are_sorted_by_who_they_are_for() -> None:
    parsed = mount_options.parse_options(
        ["nosuid", "ro", "rw", "rbind", "rslave", "size=65536k", "sync", "rnoexec", "noatime", "defaults"]
    )
    assert parsed.set == syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOATIME
    assert parsed.clear & syscalls.MOUNT_ATTR_RDONLY
    assert parsed.set_all == syscalls.MOUNT_ATTR_NOEXEC
    assert parsed.propagation == ((syscalls.MS_SLAVE, True),)
    assert (parsed.bind, parsed.recursive, parsed.read_only) == (True, True, False)
    assert (parsed.superblock, parsed.data) == (("sync",), ("size=65536k",))


def test_rootfs_options_for_mount() -> None:
    flags, data = mount_options.classic_flags(("ro", "lowerdir=/a:/b", "upperdir=/u"))
    assert (flags, data) == (syscalls.MS_RDONLY, "lowerdir=/a:/b,upperdir=/u")


def test_the_order_of_a_root_is_the_specs_then_devices_then_restrictions() -> None:
    document = default_spec()
    document["mounts"] = [entry for entry in document["mounts"] if entry["type"] != "cgroup"]
    document["process"]["cwd"] = "/work"
    plan = rootfs.plan_rootfs(document, "/bundle", None, False)
    described = [step.describe() for step in plan.setup]
    assert described[:3] == ["mount proc on /proc", "mount tmpfs on /dev", "mount devpts on /dev/pts"]
    assert described.index("mount sysfs on /sys") < described.index("device /dev/null c 1:3")
    assert described.index("device /dev/tty c 5:0") < described.index("symlink /dev/fd -> /proc/self/fd")
    assert described[-1] == "directory /work"
    last = [step.describe() for step in plan.finish]
    assert last[0] == "read-only /proc/bus"
    assert last[-2].startswith("mask /proc/acpi")
    assert last[-1] == "remount / read-only"


def test_a_host_dev_is_left_as_it_is() -> None:
    document = default_spec()
    document["mounts"] = [{"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}]
    plan = rootfs.plan_rootfs(document, "/bundle", None, False)
    assert not any(isinstance(step, operations.MakeDevice | operations.MakeSymlink) for step in plan.setup)


def test_cgroup_mounts_need_cgroups() -> None:
    with pytest.raises(RuntimeFailure, match="cgroups are disabled"):
        rootfs.plan_rootfs(default_spec(), "/bundle", None, False)


def test_namespaces_are_made_or_joined() -> None:
    plan = namespaces.Namespaces(
        [{"type": "pid"}, {"type": "cgroup"}, {"type": "network", "path": "/proc/self/ns/net"}]
    )
    assert plan.clone_flags == syscalls.CLONE_NEWPID
    assert plan.new == {"pid", "cgroup"}
    plan.open()
    assert set(plan.joined) == {"network"}
    plan.close()


def test_capabilities_by_name() -> None:
    assert capabilities.mask(["CAP_CHOWN", "cap_kill", "CAP_FUTURE"]) == 0b100001
    sets = capabilities.CapabilitySets({"permitted": ["CAP_KILL"], "ambient": ["CAP_KILL"]}, ~0)
    assert (sets.permitted, sets.ambient, sets.inheritable) == (1 << 5, 0, 0)
    assert capabilities.NUMBERS["CAP_CHECKPOINT_RESTORE"] == 40


def test_global_options_come_before_the_command() -> None:
    options, command, rest = main.split_command_line(
        ["--root", "/r", "--log-format=json", "--systemd-cgroup", "--rootless=auto", "run", "--bundle", "b", "id"]
    )
    assert options == {"--root": "/r", "--log-format": "json", "--systemd-cgroup": "true", "--rootless": "auto"}
    assert (command, rest) == ("run", ["--bundle", "b", "id"])
    with pytest.raises(main.UsageError):
        main.split_command_line(["--root"])


@pytest.mark.parametrize(("text", "number"), [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGHUP", 1), ("0", 0)])
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "SIG", "NOPE", "_IGN", "-9"])
def test_no_signals(text: str) -> None:
    with pytest.raises(InvalidSpec):
        parse_signal(text)


def test_update_options_become_resources() -> None:
    options = update.update_parser().parse_args(["--memory", "64m", "--pids-limit", "5", "--cpuset-cpus", "0-1", "id"])
    assert update.resources_of(options) == {
        "memory": {"limit": 64 << 20},
        "pids": {"limit": 5},
        "cpu": {"cpus": "0-1"},
    }


def test_errors_cross_the_channel_by_kind() -> None:
    error = messages.failure(messages.Message(messages.Kind.FAILED, "ProcessFailure\nexec: no"))
    assert isinstance(error, ProcessFailure)
    assert str(error) == "exec: no"
    assert messages.describe(OSError(2, "No such file or directory", "/x")) == "/x: no such file or directory"


def test_features_name_what_is_there() -> None:
    document = supported_features()
    assert {"rbind", "ro", "rro", "tmpcopyup"} <= set(document["mountOptions"])
    assert document["linux"]["cgroup"]["v1"] is True
