"""``gantry network``: every command against a running engine."""

from __future__ import annotations

import json

from tests.support.engine import Engine


def test_a_networks_life(engine: Engine) -> None:
    made = engine.gantry(
        "network", "create", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64", "--ipv6", "--gateway", "10.88.0.254",
        "--ip-range", "10.88.0.128/25", "--aux-address", "printer=10.88.0.129", "--label", "a=b",
        "-o", "com.docker.network.driver.mtu=1300", "clinet",
    ).stdout.strip()  # fmt: skip
    try:
        (found,) = json.loads(engine.gantry("network", "inspect", "clinet").stdout)
        assert found["Id"] == made
        assert found["IPAM"]["Config"] == [
            {
                "Subnet": "10.88.0.0/24",
                "IPRange": "10.88.0.128/25",
                "Gateway": "10.88.0.254",
                "AuxiliaryAddresses": {"printer": "10.88.0.129"},
            },
            {"Subnet": "fd88::/64", "Gateway": "fd88::1"},
        ]
        listed = engine.gantry("network", "ls", "--filter", "label=a=b").stdout
        assert "10.88.0.0/24, fd88::/64" in listed
        assert engine.gantry("network", "ls", "-q", "--filter", "label=a=b").stdout == f"{made[:12]}\n"
        engine.docker("run", "-d", "--name", "cli-member", "busybox", "sleep", "600")
        engine.gantry("network", "connect", "--ip", "10.88.0.200", "--alias", "nick", "clinet", "cli-member")
        (found,) = json.loads(engine.gantry("network", "inspect", "clinet").stdout)
        assert found["Containers"][next(iter(found["Containers"]))]["IPv4Address"] == "10.88.0.200/24"
        busy = engine.gantry("network", "rm", "clinet", check=False)
        assert (busy.returncode, "has active endpoints" in busy.stderr) == (1, True)
        engine.gantry("network", "disconnect", "clinet", "cli-member")
        assert engine.gantry("network", "disconnect", "clinet", "cli-member", check=False).returncode == 1
        assert "clinet" in engine.gantry("network", "prune", "-f").stdout
    finally:
        engine.docker("rm", "-f", "cli-member", check=False)
        engine.gantry("network", "rm", "-f", "clinet")


def test_mistakes_are_said(engine: Engine) -> None:
    missing = engine.gantry("network", "inspect", "nothere", check=False)
    assert (missing.returncode, missing.stdout) == (1, "[]\n")
    assert "network nothere not found" in missing.stderr
    wrong = engine.gantry("network", "create", "--gateway", "10.1.1.1", "x", check=False)
    assert (wrong.returncode, "no matching subnet for 10.1.1.1" in wrong.stderr) == (125, True)
    assert engine.gantry("network", "ls", "--filter", "x", check=False).returncode == 125
    assert "say --force" in engine.gantry("network", "prune", check=False).stderr
