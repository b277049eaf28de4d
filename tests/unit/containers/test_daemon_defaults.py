"""daemon.json's defaults for containers: what fills in for what, and what is refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config import Config, load
from engine.containers.config import HostConfig, LogConfig, Ulimit
from engine.containers.creation import with_defaults
from oci.errors import InvalidArgument


def configured(directory: Path, options: dict[str, Any], *flags: str) -> Config:
    file = directory / "daemon.json"
    file.write_text(json.dumps(options))
    return load(["--config-file", str(file), *flags])


def test_a_container_that_asks_for_nothing_gets_the_defaults(tmp_path: Path) -> None:
    limit = {"Name": "nofile", "Soft": 10, "Hard": 20}
    options = {
        "log-driver": "local",
        "log-opts": {"max-size": "5m"},
        "default-ulimits": {"nofile": limit},
        "default-shm-size": "32M",
        "init": True,
        "no-new-privileges": True,
        "default-runtime": "crun",
        "default-ipc-mode": "shareable",
    }
    host = with_defaults(HostConfig(), configured(tmp_path, options).defaults)
    assert host.log_config == LogConfig("local", {"max-size": "5m"})
    assert host.ulimits == (Ulimit("nofile", hard=20, soft=10),)
    assert host.shm_size == 32 << 20
    assert (host.init, host.security_opt, host.runtime, host.ipc_mode) == (
        True,
        ("no-new-privileges",),
        "crun",
        "shareable",
    )


def test_what_a_container_asks_for_stays(tmp_path: Path) -> None:
    flags = ("--log-opt", "max-size=5m", "--default-ulimit", "nofile=1:2", "--default-ulimit", "core=0", "--init")
    defaults = configured(tmp_path, {}, *flags, "--no-new-privileges").defaults
    asked = HostConfig(
        log_config=LogConfig("json-file", {"max-file": "3"}),
        ulimits=(Ulimit("nofile", hard=9, soft=9),),
        init=False,
        security_opt=("no-new-privileges:false",),
    )
    host = with_defaults(asked, defaults)
    assert host.log_config == LogConfig("json-file", {"max-size": "5m", "max-file": "3"})
    assert host.ulimits == (Ulimit("nofile", hard=9, soft=9), Ulimit("core", hard=0, soft=0))
    assert host.init is False
    assert host.security_opt == ("no-new-privileges:false",)
    other = with_defaults(HostConfig(log_config=LogConfig("none")), defaults)
    assert other.log_config == LogConfig("none", {}), "options are those of the default driver"


def test_without_defaults_nothing_is_said(tmp_path: Path) -> None:
    host = with_defaults(HostConfig(), configured(tmp_path, {}).defaults)
    assert (host.init, host.ulimits, host.security_opt) == (None, None, None)
    assert (host.log_config, host.runtime) == (LogConfig("json-file", {}), "runc-py")


def test_runtimes_are_found_by_name(tmp_path: Path) -> None:
    program = tmp_path / "other"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    defaults = configured(tmp_path, {"runtimes": {"other": {"path": str(program)}}}).defaults
    assert defaults.binary("other") == str(program)
    assert defaults.binary("io.containerd.runc.v2") == "runc"
    assert defaults.installed()["other"] == {"path": str(program)}
    for name in ("nobody", "io.containerd.runsc.v1"):
        with pytest.raises(InvalidArgument, match="unknown or invalid runtime name"):
            defaults.binary(name)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"log-driver": "pigeon"}, "no log driver named 'pigeon'"),
        ({"log-opts": {"max-size": "much"}}, "max-size"),
        ({"log-opts": ["x"]}, "log-opts"),
        ({"default-ulimits": {"nofile": 5}}, "default-ulimits"),
        ({"default-shm-size": "big"}, "default-shm-size"),
        ({"default-ipc-mode": "host"}, "default-ipc-mode"),
        ({"default-runtime": "nobody"}, "nobody"),
        ({"runtimes": {"a": {"path": "/nowhere/a"}}}, "/nowhere/a"),
        ({"runtimes": {"a": {"path": "/bin/sh", "runtimeArgs": ["-x"]}}}, "runtimes"),
        ({"runtimes": {"runc-py": {"path": "/bin/sh"}}}, "taken"),
        ({"live-restore": False}, "live-restore"),
        ({"storage-driver": "btrfs"}, "storage-driver"),
        ({"swarm-default-advertise-addr": "x"}, "swarm-default-advertise-addr"),
    ],
)
def test_what_is_not_possible_is_named(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        configured(tmp_path, options)
