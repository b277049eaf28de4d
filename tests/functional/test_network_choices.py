"""Which of several networks gives the default route, the ports and the names."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.engine import Engine


@pytest.fixture
def two_networks(engine: Engine) -> Iterator[Engine]:
    for name, subnet in (("alpha", "10.61.0.0/24"), ("beta", "10.62.0.0/24")):
        engine.docker("network", "create", "--subnet", subnet, name)
    yield engine
    engine.docker("rm", "-f", "chooser", check=False)
    for name in ("alpha", "beta"):
        engine.docker("network", "rm", name)


def run(engine: Engine, *networks: str) -> None:
    options = [word for network in networks for word in ("--network", network)]
    engine.docker("run", "-d", "--name", "chooser", *options, "-p", "8077:80", "busybox", "sleep", "600")


def sh(engine: Engine, script: str) -> str:
    return engine.docker("exec", "chooser", "sh", "-c", script).stdout


def test_the_highest_priority_gives_the_default_route(two_networks: Engine) -> None:
    run(two_networks, "name=alpha,ip=10.61.0.50,alias=one", "name=beta,alias=two,gw-priority=10")
    assert sh(two_networks, "ip route").splitlines()[0].startswith("default via 10.62.0.1 ")
    assert "10.61.0.50" in sh(two_networks, "nslookup one")
    assert "10.62.0.2" in sh(two_networks, "nslookup two")
    networks = json.loads(two_networks.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", "chooser").stdout)
    assert networks["beta"]["GwPriority"] == 10
    assert networks["alpha"]["IPAMConfig"]["IPv4Address"] == "10.61.0.50"


def test_the_route_moves_when_its_network_goes(two_networks: Engine) -> None:
    run(two_networks, "alpha", "beta")
    assert sh(two_networks, "ip route").splitlines()[0].startswith("default via 10.61.0.1 ")
    two_networks.docker("network", "disconnect", "alpha", "chooser")
    assert sh(two_networks, "ip route").splitlines()[0].startswith("default via 10.62.0.1 ")
    two_networks.docker("network", "connect", "alpha", "chooser")
    assert sh(two_networks, "ip route").splitlines()[0].startswith("default via 10.62.0.1 "), "it keeps what it has"
    two_networks.docker("restart", "-t", "0", "chooser")
    assert sh(two_networks, "ip route").splitlines()[0].startswith("default via 10.61.0.1 ")


def test_a_stopped_container_keeps_what_it_was_connected_to(two_networks: Engine) -> None:
    two_networks.docker("create", "--name", "chooser", "busybox", "sleep", "600")
    two_networks.docker("network", "connect", "--ip", "10.62.0.99", "beta", "chooser")
    networks = json.loads(two_networks.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", "chooser").stdout)
    assert sorted(networks) == ["beta", "bridge"]
    two_networks.docker("start", "chooser")
    assert "10.62.0.99" in sh(two_networks, "ip addr")
