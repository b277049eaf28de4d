"""Which cgroup directories a container gets, from the kernel's own descriptions of a host."""

from __future__ import annotations

import pytest

from runc_py.cgroups import CgroupError, layout

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
42 31 0:39 / /sys/fs/cgroup/elogind rw,relatime - cgroup cgroup rw,name=elogind
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
NESTED = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"


def test_hybrid_host_is_v1_and_comounted_controllers_share_a_directory() -> None:
    host = layout.parse_mountinfo(HYBRID)
    assert host.unified == ""
    assert layout.legacy_paths(host, "/docker/x", "x") == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/docker/x",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/docker/x",
        "memory": "/sys/fs/cgroup/memory/docker/x",
        "name=systemd": "/sys/fs/cgroup/systemd/docker/x",
    }


def test_unified_host() -> None:
    host = layout.parse_mountinfo(UNIFIED)
    assert host.unified == "/sys/fs/cgroup"
    assert layout.unified_path(host, "/docker/x", "x") == "/sys/fs/cgroup/docker/x"


def test_unified_relative_path_is_beside_the_callers_cgroup() -> None:
    host = layout.parse_mountinfo(UNIFIED)
    own = {"": "/system.slice/gantry.service"}
    assert layout.unified_path(host, "", "x", lambda: own) == "/sys/fs/cgroup/system.slice/x"
    assert layout.unified_path(host, "a/b", "x", lambda: {"": "/"}) == "/sys/fs/cgroup/a/b"


def test_legacy_relative_path_is_below_the_callers_cgroup() -> None:
    host = layout.parse_mountinfo(HYBRID)
    own = {"memory": "/user/me", "cpu": "/", "cpuacct": "/", "name=systemd": "/"}
    paths = layout.legacy_paths(host, "", "x", lambda: own)
    assert paths["memory"] == "/sys/fs/cgroup/memory/user/me/x"
    assert paths["cpu"] == "/sys/fs/cgroup/cpu,cpuacct/x"


def test_hierarchy_that_shows_only_a_part() -> None:
    host = layout.parse_mountinfo(NESTED)
    own = {"memory": "/docker/abc/inner"}
    assert layout.legacy_paths(host, "x", "x", lambda: own) == {"memory": "/sys/fs/cgroup/memory/inner/x"}
    assert layout.legacy_paths(host, "/x", "x", lambda: own) == {"memory": "/sys/fs/cgroup/memory/x"}


def test_own_cgroups_of_proc_file() -> None:
    text = "4:memory:/a\n2:cpu,cpuacct:/b\n1:name=systemd:/c:d\n0::/e\n"
    assert layout.own_cgroups(text) == {
        "memory": "/a",
        "cpu": "/b",
        "cpuacct": "/b",
        "name=systemd": "/c:d",
        "": "/e",
    }


@pytest.mark.parametrize("path", ["../../x", "/a/../../b", "..", "/", "a/\n/b"])
def test_paths_that_leave_their_place_are_refused(path: str) -> None:
    with pytest.raises(CgroupError, match="cgroupsPath"):
        layout.clean(path, "x")


@pytest.mark.parametrize(("path", "expected"), [("", "id"), ("//a///b/", "/a/b"), ("a/./b", "a/b"), ("/a..b", "/a..b")])
def test_clean(path: str, expected: str) -> None:
    assert layout.clean(path, "id") == expected


def test_no_cgroups_at_all_says_what_to_do() -> None:
    with pytest.raises(CgroupError, match="--cgroup-manager disabled"):
        layout.parse_mountinfo("24 1 8:1 / / rw - ext4 /dev/sda rw\n")


def test_mount_point_with_escaped_blank() -> None:
    text = "35 31 0:32 / /sys/fs/my\\040cg rw - cgroup cgroup rw,memory\n"
    assert layout.parse_mountinfo(text).legacy[0].mount_point == "/sys/fs/my cg"
