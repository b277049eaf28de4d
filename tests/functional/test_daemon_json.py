"""daemon.json's defaults for containers, seen from inside them; SIGHUP brings new ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from tests.support.engine import Engine
from tests.support.host import PrivateHost, wait_for

pytestmark = pytest.mark.root


class Configured:
    """An engine with a daemon.json in which ``other`` is a runtime."""

    def __init__(self, host: PrivateHost, runtime: str) -> None:
        self.program = host.base / "other-runtime"
        self.program.write_text(f'#!/bin/sh\nexec {runtime} "$@"\n')
        self.program.chmod(0o755)
        self.file = host.base / "daemon.json"
        self.write({"default-ulimits": {"nofile": {"Name": "nofile", "Soft": 500, "Hard": 600}}})
        self.engine = Engine(host, "--config-file", str(self.file), "--label", "place=here")
        self.engine.start()

    def write(self, further: dict[str, object]) -> None:
        fixed = {"runtimes": {"other": {"path": str(self.program)}}, "log-driver": "local", "init": True}
        self.file.write_text(json.dumps(fixed | further))

    def info(self, field: str) -> str:
        return self.engine.docker("info", "--format", f"{{{{json .{field}}}}}").stdout.strip()


@pytest.fixture(scope="module")
def configured(busybox_tar: bytes) -> Iterator[Configured]:
    runtime = shutil.which("runc")
    if runtime is None:
        pytest.skip("needs runc (apt: runc)")
    with PrivateHost() as host:
        found = Configured(host, runtime)
        found.engine.docker("import", "-c", 'CMD ["sh"]', "-", "busybox", stdin=busybox_tar)
        yield found
        found.engine.down()


def test_containers_get_what_the_file_says(configured: Configured) -> None:
    engine = configured.engine
    asked = "ulimit -Sn; ulimit -Hn; cat /proc/1/comm"
    soft, hard, first = engine.docker("run", "--rm", "busybox", "sh", "-c", asked).stdout.split()
    assert (soft, hard) == ("500", "600")
    assert first != "sh", "an init process is the first"
    own = engine.docker("run", "--rm", "--ulimit", "nofile=7:8", "busybox", "sh", "-c", "ulimit -Sn").stdout
    assert own == "7\n"
    id = engine.docker("create", "--log-opt", "max-size=1m", "busybox").stdout.strip()
    told = engine.docker("inspect", "-f", "{{json .HostConfig.LogConfig}}", id).stdout
    assert json.loads(told) == {"Type": "local", "Config": {"max-size": "1m"}}
    engine.docker("rm", id)


def test_further_runtimes(configured: Configured) -> None:
    engine = configured.engine
    assert json.loads(configured.info("Runtimes"))["other"] == {"path": str(configured.program)}
    for name in ("other", "io.containerd.runc.v2"):
        done = engine.docker("run", "--rm", "--init=false", "--runtime", name, "busybox", "echo", name)
        assert done.stdout == f"{name}\n"
    failed = engine.docker("run", "--rm", "--runtime", "io.containerd.kata.v2", "busybox", check=False)
    assert failed.returncode == 125
    assert "unknown or invalid runtime name: io.containerd.kata.v2" in failed.stderr
    assert '"runtimes" in daemon.json' in failed.stderr


def test_info_and_reload(configured: Configured) -> None:
    assert json.loads(configured.info("Labels")) == ["place=here"]
    assert configured.info("LoggingDriver") == '"local"'
    configured.write({"default-runtime": "other", "default-ulimits": {}})
    os.kill(configured.engine.pid("engine.main"), signal.SIGHUP)
    wait_for(lambda: configured.info("DefaultRuntime") == '"other"', "the new default")
    id = configured.engine.docker("create", "busybox").stdout.strip()
    told = configured.engine.docker("inspect", "-f", "{{.HostConfig.Runtime}} {{.HostConfig.Ulimits}}", id).stdout
    assert told == "other []\n"
    configured.engine.docker("rm", id)
