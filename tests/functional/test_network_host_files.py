"""resolv.conf of running containers while the host's changes: written in place, with and without a daemon."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for

FIRST = "nameserver 192.0.2.53\nsearch home.example\n"
SECOND = "nameserver 192.0.2.54\nsearch office.example\noptions ndots:3\n"
THIRD = "nameserver 192.0.2.55\n"


class Following:
    """An engine on a host whose resolv.conf is ours."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._path = engine.host.base / "host-resolv.conf"
        self.set(FIRST)
        engine.host.check("mount", "--bind", str(self._path), os.path.realpath("/etc/resolv.conf"))

    def set(self, text: str) -> None:
        """In place, as a program does that has the file open."""
        self._path.write_text(text)

    def run(self, name: str, *options: str) -> None:
        self.engine.docker("run", "-d", "--name", name, *options, "busybox", "sleep", "6000")

    def read(self, name: str) -> str:
        return self.engine.docker("exec", name, "cat", "/etc/resolv.conf").stdout

    def gets(self, name: str, *lines: str) -> None:
        wait_for(lambda: set(lines) <= set(self.read(name).splitlines()), f"{name}: {lines} in {self.read(name)}")


@pytest.fixture(scope="module")
def host(make_engine: Callable[..., Engine]) -> Iterator[Following]:
    # The engine is started again so that it finds the file in place.
    engine = make_engine()
    found = Following(engine)
    engine.kill("engine.main")
    engine.start()
    yield found
    engine.host.check("umount", os.path.realpath("/etc/resolv.conf"))


def test_running_containers_follow(host: Following) -> None:
    host.engine.docker("network", "create", "blue")
    host.run("plain")
    host.run("shared", "--network", "container:plain")
    host.run("blue", "--network", "blue")
    host.run("asked", "--dns", "192.0.2.99")
    host.run("edited")
    host.engine.docker("exec", "edited", "sh", "-c", "echo nameserver 192.0.2.77 >> /etc/resolv.conf")
    edited = host.read("edited")
    host.gets("plain", "nameserver 192.0.2.53", "search home.example")
    host.set(SECOND)
    host.gets("plain", "nameserver 192.0.2.54", "search office.example", "options ndots:3")
    host.gets("shared", "nameserver 192.0.2.54")
    host.gets("blue", "nameserver 127.0.0.11", "search office.example", "# ExtServers: [host(192.0.2.54)]")
    host.gets("asked", "nameserver 192.0.2.99", "search office.example")
    assert host.read("edited") == edited, "what a user wrote is the user's"

    host.engine.docker("network", "connect", "blue", "plain")
    host.gets("plain", "nameserver 127.0.0.11")
    host.gets("shared", "nameserver 127.0.0.11")
    hosts = [host.engine.docker("exec", name, "cat", "/etc/hosts").stdout for name in ("plain", "shared")]
    assert hosts[0] == hosts[1]
    host.engine.docker("network", "disconnect", "blue", "plain")
    host.gets("plain", "nameserver 192.0.2.54")
    host.engine.docker("network", "connect", "blue", "edited")
    assert host.read("edited") == edited

    host.engine.kill("engine.main")
    host.set(THIRD)
    host.engine.start()
    host.gets("plain", "nameserver 192.0.2.55")
    host.gets("blue", "# ExtServers: [host(192.0.2.55)]")
    host.engine.docker("restart", "-t", "0", "edited")
    host.gets("edited", "nameserver 127.0.0.11", "# ExtServers: [host(192.0.2.55)]")
    host.engine.docker("rm", "-f", "plain", "shared", "blue", "asked", "edited")
    host.engine.docker("network", "rm", "blue")
