"""Other firewalls on the host: what they keep from containers is told, and the documented rules mend it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for
from tests.support.outside import HOST, OutsideMachine

IPTABLES = "iptables-nft"
BRIDGES = ("gantry0", "gbr-+")

pytestmark = pytest.mark.skipif(shutil.which(IPTABLES) is None, reason=f"{IPTABLES} is missing")


class Served:
    """An engine whose containers serve on the default bridge (8081) and on a network of the user (8082)."""

    def __init__(self, engine: Engine, outside: OutsideMachine) -> None:
        self.engine = engine
        self.outside = outside
        engine.docker("network", "create", "blue")
        for port, network in ((8081, "bridge"), (8082, "blue")):
            web = ("busybox", "httpd", "-f", "-p", "80", "-h", "/www")
            engine.docker("run", "-d", "--network", network, "-p", f"{port}:80", *web)
        wait_for(self.reached, "both servers")

    def answers(self, seconds: float) -> list[str]:
        return [self.outside.get(f"http://{HOST}:{port}/", seconds).strip() for port in (8081, 8082)]

    def reached(self) -> bool:
        return self.answers(3) == ["served", "served"]

    def told(self) -> list[str]:
        """The warnings of ``docker info``."""
        found = json.loads(self.engine.docker("info", "-f", "{{json .Warnings}}").stdout)
        return [line for line in found or () if "forwarded" in line]


@pytest.fixture(scope="module")
def served(make_engine: Callable[..., Engine]) -> Iterator[Served]:
    engine = make_engine()
    with OutsideMachine(engine.host) as outside:
        found = Served(engine, outside)
        yield found
        engine.docker("rm", "-f", *engine.docker("ps", "-aq").stdout.split())
        engine.docker("network", "rm", "blue")


def test_a_forward_policy_of_drop(served: Served) -> None:
    """As ufw has it, and Docker where it is installed beside."""
    host = served.engine.host
    assert served.told() == []
    host.check(IPTABLES, "-P", "FORWARD", "DROP")
    try:
        assert served.answers(0.7) == ["", ""], "the other firewall drops what is forwarded: nothing is tested here"
        (line,) = served.told()
        assert "table ip filter drops forwarded packets (chain FORWARD) and has no rule about gantry0" in line
        assert line in served.engine.docker("info").stderr
        for bridge in BRIDGES:
            host.check(IPTABLES, "-I", "FORWARD", "-i", bridge, "-j", "ACCEPT")
            host.check(IPTABLES, "-I", "FORWARD", "-o", bridge, "-j", "ACCEPT")
        assert served.reached()
        assert served.told() == []
    finally:
        host.check("nft", "delete", "table", "ip", "filter")
    assert served.reached()


def test_a_last_rule_that_rejects(served: Served) -> None:
    """As firewalld has it."""
    host = served.engine.host
    host.check("nft", "add table inet firewalld")
    host.check("nft", "add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; }")
    host.check("nft", "add rule inet firewalld filter_FORWARD reject")
    try:
        assert served.answers(0.7) == ["", ""]
        (line,) = served.told()
        assert "table inet firewalld drops forwarded packets" in line
        for bridge in ("gantry0", "gbr-*"):
            for way in ("iifname", "oifname"):
                host.check("nft", f'insert rule inet firewalld filter_FORWARD {way} "{bridge}" accept')
        assert served.reached()
        assert served.told() == []
    finally:
        host.check("nft", "delete", "table", "inet", "firewalld")
