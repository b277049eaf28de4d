"""Attacks on container runtimes that were found in others: each must fail here, with nothing made on the host."""

from __future__ import annotations

import json
import os
import time

import pytest

from runc_py.errors import InvalidSpec, RuntimeFailure
from runc_py.runtime import Stdio
from tests.integration.runc_py.conftest import Bundle, cgroups_of, wait

pytestmark = pytest.mark.root


def test_mount_points_behind_symlinks_stay_inside(bundle: Bundle) -> None:
    outside = bundle.directory / "outside"
    outside.mkdir()
    (bundle.rootfs / "absolute").symlink_to(outside)
    (bundle.rootfs / "upwards").symlink_to("../../../../../../../../../.." + str(outside))
    (bundle.rootfs / "dangling").symlink_to("/not/yet")
    source = bundle.directory / "source"
    source.mkdir()
    (source / "mark").touch()
    bundle.spec["root"]["readonly"] = False
    bundle.spec["mounts"] += [
        {"destination": f"/{name}/sub", "type": "bind", "source": str(source), "options": ["bind"]}
        for name in ("absolute", "upwards", "dangling")
    ]
    output = bundle.output("ls /absolute/sub /upwards/sub /not/yet/sub")
    assert output.count("mark") == 3
    assert list(outside.iterdir()) == []
    assert (bundle.rootfs / str(outside).lstrip("/") / "sub").is_dir()


def test_dev_as_a_link_to_the_host(bundle: Bundle) -> None:
    outside = bundle.directory / "outside"
    outside.mkdir()
    (bundle.rootfs / "dev").rmdir()
    (bundle.rootfs / "dev").symlink_to(outside)
    bundle.spec["mounts"] = [entry for entry in bundle.spec["mounts"] if not entry["destination"].startswith("/dev")]
    bundle.spec["root"]["readonly"] = False
    assert "c" in bundle.output("ls -l /dev/null | cut -c1; ls -lL /dev/null | cut -c1")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("destination", ["/proc", "/sys"])
def test_proc_and_sys_must_be_real_directories(bundle: Bundle, destination: str) -> None:
    (bundle.rootfs / destination[1:]).rmdir()
    (bundle.rootfs / destination[1:]).symlink_to("/tmp")
    bundle.shell("true")
    with pytest.raises(RuntimeFailure, match="must be mounted on an ordinary directory"):
        bundle.in_process()


def test_nothing_is_mounted_inside_proc(bundle: Bundle) -> None:
    bundle.spec["mounts"].append(
        {"destination": "/proc/self/attr", "type": "bind", "source": "/tmp", "options": ["bind"]}
    )
    bundle.shell("true")
    with pytest.raises(RuntimeFailure, match="cannot be mounted because it is inside /proc"):
        bundle.in_process()


def test_no_descriptor_and_no_outside_directory_is_inherited(bundle: Bundle) -> None:
    leaked = os.open("/", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        output = bundle.output("for fd in /proc/self/fd/*; do echo ${fd##*/}; done | sort -n | tail -1")
        assert int(output) <= 3  # 3 is the shell's own directory stream
        for number in range(3, 20):
            bundle.process["cwd"] = f"/proc/self/fd/{number}"
            bundle.shell("pwd; ls /proc/self/cwd/")
            with pytest.raises(RuntimeFailure):
                bundle.in_process()
    finally:
        os.close(leaked)
    bundle.process["cwd"] = "/"
    bundle.sleeping()
    for number in range(3, 20):
        with pytest.raises(RuntimeFailure):
            bundle.exec("pwd", cwd=f"/proc/self/fd/{number}")


def test_a_swapped_null_device_is_not_used_as_mask(bundle: Bundle) -> None:
    bundle.spec["mounts"] = [entry for entry in bundle.spec["mounts"] if not entry["destination"].startswith("/dev")]
    (bundle.rootfs / "dev/null").symlink_to("/etc/passwd")
    bundle.linux["maskedPaths"] = ["/proc/timer_list"]
    bundle.shell("wc -c < /proc/timer_list")
    with pytest.raises(RuntimeFailure, match="/dev/null"):
        bundle.in_process()


def test_console_that_is_a_symlink_is_refused(bundle: Bundle) -> None:
    outside = bundle.directory / "outside"
    outside.touch()
    bundle.process["terminal"] = True
    bundle.spec["mounts"] = [
        entry for entry in bundle.spec["mounts"] if entry["destination"] not in ("/dev", "/dev/shm", "/dev/mqueue")
    ]
    (bundle.rootfs / "dev/console").symlink_to(outside)
    bundle.shell("true")
    with pytest.raises(RuntimeFailure):
        bundle.in_process()


def test_pts_that_is_no_devpts_gives_no_terminal(bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    bundle.spec["mounts"] = [entry for entry in bundle.spec["mounts"] if not entry["destination"].startswith("/dev")]
    (bundle.rootfs / "dev/pts").mkdir()
    os.mknod(bundle.rootfs / "dev/pts/ptmx", 0o20666, os.makedev(5, 2))
    bundle.shell("true")
    with pytest.raises(RuntimeFailure, match="cannot open a terminal"):
        bundle.in_process()


def test_a_process_that_enters_cannot_be_looked_into(bundle: Bundle) -> None:
    """CVE-2016-9962: while exec is on its way in, its descriptors are closed to everybody in the container."""
    bundle.process["capabilities"] = {kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted")}
    bundle.shell(
        "while true; do for p in /proc/[0-9]*; do n=$(readlink $p/fd/3 2>/dev/null) && "
        '[ "$p" != /proc/1 ] && case "$n" in *state*|socket:*|*pidfd*) echo "seen $p $n";; esac; done; done'
    )
    with bundle.captured() as capture:
        launched = bundle.runtime.create(bundle.id, str(bundle.directory), stdio=capture.stdio, spec=bundle.copied())
        bundle.runtime.start(bundle.id)
        for _ in range(30):
            assert bundle.exec("true") == (0, "")
        bundle.runtime.kill(bundle.id, 9)
        wait(launched)
        assert "seen" not in capture.text()


def test_python_modules_in_the_image_are_never_loaded(bundle: Bundle) -> None:
    trap = bundle.rootfs / "trap"
    for root in {os.path.dirname(os.__file__), "/usr/lib/python3.11"}:
        target = bundle.rootfs / root.lstrip("/")
        (target / "encodings").mkdir(parents=True)
        for name in ("encodings/idna.py", "pwd.py", "grp.py", "traceback.py", "linecache.py"):
            (target / name).write_text(f"open('/trap', 'w').write({name!r})\n")
    bundle.spec["root"]["readonly"] = False
    bundle.process["args"] = ["missing"]
    with pytest.raises(RuntimeFailure):
        bundle.in_process()
    bundle.sleeping()
    bundle.exec("true", user={"uid": 4242, "gid": 4242})
    with pytest.raises(RuntimeFailure):
        bundle.exec("missing")
    assert not trap.exists()


def test_passwd_that_is_a_fifo_or_a_link_does_not_matter(bundle: Bundle) -> None:
    passwd = bundle.rootfs / "etc/passwd"
    passwd.unlink()
    os.mkfifo(passwd)
    assert bundle.output("echo $HOME") == "/\n"


def test_tampered_state_names_no_other_container(bundle: Bundle) -> None:
    launched = bundle.sleeping()
    other = bundle.state / "other"
    other.mkdir()
    record = json.loads((bundle.state / bundle.id / "state.json").read_text())
    (other / "state.json").write_text(json.dumps(record))
    with pytest.raises(RuntimeFailure, match="is of another container"):
        bundle.runtime.kill("other", 9)
    record["id"], record["start_time"] = "other", record["start_time"] + 1
    (other / "state.json").write_text(json.dumps(record))
    assert bundle.runtime.state("other")["status"] == "stopped"
    (other / "state.json").unlink()
    other.rmdir()
    assert launched.pid == bundle.runtime.state(bundle.id)["pid"]


def test_cgroup_paths_do_not_climb(bundle: Bundle) -> None:
    bundle.linux["cgroupsPath"] = "/a/../../b"
    bundle.shell("true")
    with pytest.raises(RuntimeFailure):
        bundle.in_process()
    assert not bundle.state.exists() or not list(bundle.state.glob("gantry*"))


@pytest.mark.parametrize("user", [{"uid": -1}, {"uid": 1 << 32}, {"uid": "0"}, {"uid": True}, {"gid": 0xFFFFFFFF}])
def test_odd_users_are_refused(bundle: Bundle, user: dict[str, object]) -> None:
    bundle.process["user"] = user
    bundle.shell("id")
    with pytest.raises(InvalidSpec, match=r"process\.user"):
        bundle.in_process()


def test_renaming_race_around_a_mount_point_makes_nothing_outside(bundle: Bundle) -> None:
    """CVE-2021-30465: another process swaps a directory of a shared volume for a symlink while mounts are made."""
    from runc_py import syscalls

    volume, outside = bundle.directory / "volume", bundle.directory / "outside"
    (volume / "dir").mkdir(parents=True)
    outside.mkdir()
    (volume / "link").symlink_to("/" + "../" * 12 + str(outside).lstrip("/"))
    bundle.spec["mounts"] += [
        {"destination": "/volume", "type": "bind", "source": str(volume), "options": ["bind"]},
        {"destination": "/volume/dir/made", "type": "tmpfs", "source": "tmpfs"},
    ]
    swapper = os.fork()
    if swapper == 0:
        library = syscalls._libc
        end = time.monotonic() + 20
        while time.monotonic() < end:
            library.renameat2(-100, bytes(volume / "dir"), -100, bytes(volume / "link"), 2)
        os._exit(0)
    try:
        for _ in range(25):
            bundle.shell("true")
            try:
                bundle.in_process()
            except RuntimeFailure:
                continue  # losing the race may be an error, but never a way out
        assert list(outside.iterdir()) == []
    finally:
        os.kill(swapper, 9)
        os.waitpid(swapper, 0)


def test_secrets_of_the_caller_are_not_in_the_environment(bundle: Bundle) -> None:
    os.environ["GANTRY_TEST_SECRET"] = "secret"
    try:
        assert "secret" not in bundle.output("cat /proc/1/environ; env")
    finally:
        del os.environ["GANTRY_TEST_SECRET"]


def test_failed_creation_leaves_nothing(bundle: Bundle) -> None:
    bundle.spec["mounts"].append(
        {"destination": "/x", "type": "bind", "source": "/does/not/exist", "options": ["bind"]}
    )
    bundle.shell("true")
    null = os.open(os.devnull, os.O_RDWR)
    with pytest.raises(RuntimeFailure, match="/does/not/exist"):
        bundle.runtime.create(bundle.id, str(bundle.directory), stdio=Stdio(null, null, null), spec=bundle.copied())
    os.close(null)
    assert not (bundle.state / bundle.id).exists()
    assert not cgroups_of(bundle.id)
