"""Volumes with the real client."""

from __future__ import annotations

import json

from tests.support.engine import Engine


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
