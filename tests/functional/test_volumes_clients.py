"""Volumes with the real client."""

from __future__ import annotations

import json

from tests.support.engine import Engine
from tests.support.host import wait_for


def test_data_outlives_containers(engine: Engine) -> None:
    assert engine.docker("volume", "create", "--label", "a=b", "kept").stdout == "kept\n"
    engine.docker("run", "--rm", "-v", "kept:/d", "busybox", "sh", "-c", "echo saved > /d/f")
    assert engine.docker("run", "--rm", "-v", "kept:/d", "busybox", "cat", "/d/f").stdout == "saved\n"
    found = json.loads(engine.docker("volume", "inspect", "kept").stdout)[0]
    assert (found["Driver"], found["Scope"], found["Labels"]) == ("local", "local", {"a": "b"})
    engine.docker("create", "--name", "user", "-v", "kept:/d", "busybox")
    refused = engine.docker("volume", "rm", "kept", check=False)
    assert "volume is in use" in refused.stderr
    engine.docker("rm", "user")
    engine.docker("volume", "rm", "kept")
    assert "no such volume" in engine.docker("volume", "inspect", "kept", check=False).stderr


def test_prune_and_filters(engine: Engine) -> None:
    engine.docker("volume", "create", "spare")
    engine.docker("run", "--name", "anon", "-v", "/x", "busybox", "true")
    engine.docker("rm", "anon")
    dangling = engine.docker("volume", "ls", "-q", "-f", "dangling=true").stdout.split()
    assert "spare" in dangling
    pruned = engine.docker("volume", "prune", "-f").stdout
    assert "spare" not in pruned
    assert engine.docker("volume", "ls", "-q").stdout.split() == ["spare"]
    assert "spare" in engine.docker("volume", "prune", "-af").stdout


def test_tmpfs_options_of_the_local_driver(engine: Engine) -> None:
    options = ("-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m,mode=0777")
    engine.docker("volume", "create", *options, "ram")
    try:
        line = engine.docker("run", "--rm", "-v", "ram:/r", "busybox", "grep", " /r ", "/proc/mounts").stdout
        assert line.startswith("tmpfs /r tmpfs ")
        assert "size=1024k" in line
    finally:
        engine.docker("volume", "rm", "ram")


def test_a_mount_makes_its_volume_with_options_and_labels(engine: Engine) -> None:
    mount = "type=volume,src=opted,dst=/v,volume-label=k=v,volume-opt=type=tmpfs,volume-opt=device=tmpfs"
    try:
        said = engine.docker("run", "--rm", "--mount", f"{mount},volume-opt=o=size=1m", "busybox", "df", "-k", "/v")
        assert said.stdout.splitlines()[-1].split()[:2] == ["tmpfs", "1024"]
        volume = json.loads(engine.docker("volume", "inspect", "opted").stdout)[0]
        assert (volume["Labels"], volume["Options"]["o"]) == ({"k": "v"}, "size=1m")
    finally:
        engine.docker("volume", "rm", "opted", check=False)


def test_a_volume_driver_that_is_not_there_is_named(engine: Engine) -> None:
    refused = engine.docker("create", "--volume-driver", "nope", "-v", "driven:/v", "busybox", check=False)
    assert 'error looking up volume plugin nope: plugin "nope" not found' in refused.stderr
    assert engine.docker("volume", "ls", "-q", "--filter", "name=driven").stdout == ""
    ident = engine.docker("create", "--volume-driver", "nope", "busybox").stdout.strip()  # nothing asks for it
    engine.docker("rm", ident)


def test_read_only_binds_and_what_is_mounted_below(engine: Engine) -> None:
    """Read-only is all of it, unless what is below shall stay writable."""
    top = engine.host.base / "binds"
    below = top / "below"
    below.mkdir(parents=True)
    engine.host.check("mount", "-t", "tmpfs", "tmpfs", str(below))
    try:
        for recursive, writable in (("enabled", False), ("readonly", False), ("writable", True)):
            options = f"type=bind,src={top},dst=/b,readonly,bind-recursive={recursive}"
            options += ",bind-propagation=rprivate" if recursive == "readonly" else ""
            done = engine.docker("run", "--rm", "--mount", options, "busybox", "touch", "/b/below/x", check=False)
            assert (done.returncode == 0) is writable, (recursive, done.stderr)
        body = {"Type": "bind", "Source": str(top), "Target": "/b", "BindOptions": {"ReadOnlyForceRecursive": True}}
        status, told = engine.api("POST", "/containers/create", {"Image": "busybox", "HostConfig": {"Mounts": [body]}})
        assert status == 400
        assert 'mount is set "ReadOnlyForceRecursive" but not set "ReadOnly"' in told["message"]
    finally:
        engine.host.check("umount", str(below))


def test_what_a_container_mounts_in_a_shared_bind_is_the_hosts(engine: Engine) -> None:
    top = engine.host.base / "shared"
    top.mkdir()
    engine.host.check("mount", "-t", "tmpfs", "tmpfs", str(top))
    try:
        private = engine.docker("run", "--rm", "-v", f"{top}:/s:rshared", "busybox", "true", check=False)
        assert f"path {top} is mounted on {top} but it is not a shared mount" in private.stderr
        engine.host.check("mount", "--make-shared", str(top))
        script = "mkdir /s/made; mount -t tmpfs made /s/made; touch /s/made/file; sleep 1000"
        options = ("--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined", "-v", f"{top}:/s:rshared")
        engine.docker("run", "-d", "--name", "sharing", *options, "busybox", "sh", "-c", script)
        wait_for(lambda: str(top / "made") in engine.host.mounts(), "the container's mount on the host")
        engine.host.check("mkdir", str(top / "later"))
        engine.host.check("mount", "-t", "tmpfs", "later", str(top / "later"))
        assert " /s/later " in engine.docker("exec", "sharing", "cat", "/proc/mounts").stdout
        engine.docker("rm", "-f", "sharing")
        engine.host.check("umount", str(top / "made"), str(top / "later"))
    finally:
        engine.host.check("umount", str(top))
