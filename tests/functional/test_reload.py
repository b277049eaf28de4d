"""SIGHUP: daemon.json is read again, what can change does, and containers do not notice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import Engine
from tests.support.host import PrivateHost, wait_for


class Configured:
    """An engine with a daemon.json."""

    def __init__(self, host: PrivateHost) -> None:
        self.file = host.base / "daemon.json"
        self.file.write_text("{}")
        self.engine = Engine(host, "--config-file", str(self.file))
        self.engine.start()

    def reload(self, text: str) -> None:
        self.file.write_text(text)
        os.kill(self.engine.pid("engine.main"), signal.SIGHUP)

    def info(self) -> Any:
        return json.loads(self.engine.docker("info", "--format", "{{json .}}").stdout)


@pytest.fixture
def configured(busybox_tar: bytes) -> Iterator[Configured]:
    with PrivateHost() as host:
        found = Configured(host)
        found.engine.docker("import", "-c", 'CMD ["sh"]', "-", "busybox", stdin=busybox_tar)
        yield found
        found.engine.down()


def test_what_can_change_does(configured: Configured) -> None:
    engine = configured.engine
    container = engine.docker("run", "-d", "busybox", "sh", "-c", "while :; do date; sleep 0.1; done").stdout.strip()
    configured.reload(
        '{"debug": true, "insecure-registries": ["registry.test:5000"], "registry-mirrors": ["http://m"]}'
    )
    wait_for(lambda: configured.info()["Debug"], "debug")
    told = configured.info()["RegistryConfig"]
    assert "registry.test:5000" in told["IndexConfigs"]
    assert told["Mirrors"] == ["http://m"]
    wait_for(
        lambda: engine.host.pids_of("containerd_py.main", "--registry-mirror http://m"), "containerd-py's new flags"
    )
    wait_for(
        lambda: engine.docker("run", "--rm", "busybox", "echo", "on", check=False).stdout == "on\n", "a new container"
    )
    assert engine.docker("inspect", "-f", "{{.State.Running}} {{.RestartCount}}", container).stdout == "true 0\n"
    asked = ("events", "--since", "10m", "--until", "0s", "--filter", "type=daemon")
    wait_for(lambda: "daemon reload" in engine.docker(*asked).stdout, "the event")


@pytest.mark.parametrize("text", ["{", '{"nonsense": 1}', "[]"])
def test_a_file_that_is_wrong_changes_nothing(configured: Configured, text: str) -> None:
    configured.reload(text)
    wait_for(lambda: "the configuration stays as it is" in Path(configured.engine.log).read_text(), "the refusal")
    assert configured.info()["Debug"] is False
