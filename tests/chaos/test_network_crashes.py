"""Both daemons killed while networks and containers change: what is left is what running containers need, no more.

``CHAOS_SEED`` says which changes and kills; ``CHAOS_ROUNDS`` how many of them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.engine import Engine
from tests.support.host import wait_for
from tests.support.outside import HOST, HOST6, OutsideMachine

SEED = int(os.environ.get("CHAOS_SEED", "7"))
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "4"))
CHURN = str(Path(__file__).with_name("network_churn.py"))
RECORDS = """
import json, sqlite3, sys
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
rows = database.execute("SELECT kind, id, body FROM document WHERE kind IN ('endpoint', 'network', 'retired')")
print(json.dumps([[kind, key, json.loads(body)] for kind, key, body in rows]))
"""


def shell(host: Any, *command: str) -> Any:
    """Decoded JSON output of a program in the host."""
    return json.loads(host.check(*command))


class Look:
    """What is there: by the engine's word, in the kernel, and on disk."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._host = engine.host
        _, listed = engine.api("GET", "/containers/json")
        self.containers = [engine.api("GET", f"/containers/{found['Id']}/json")[1] for found in listed]
        _, self.networks = engine.api("GET", "/networks")
        self.addresses = {
            address
            for container in self.containers
            for endpoint in container["NetworkSettings"]["Networks"].values()
            for address in (endpoint["IPAddress"], endpoint["GlobalIPv6Address"])
            if address
        }

    def differences(self) -> dict[str, Any]:
        """Where needed and found differ: (missing, too much) by kind."""
        pairs: dict[str, tuple[set[Any], set[Any]]] = {
            "namespaces": (self._ids(), set(os.listdir(self._host.outside(f"{self._host.exec_root}/netns")))),
            "interfaces": self._interfaces(),
            "ports": (self._wanted_ports(), self._ports()),
            "bridges": (self._bridges(), self._found_bridges()),
            "bridges of the firewall": (self._bridges(), self._firewall_bridges()),
            "names": (self._named(), self._records_of_names()),
            **self._records(),
        }
        return {
            what: (sorted(wanted - found), sorted(found - wanted))
            for what, (wanted, found) in pairs.items()
            if wanted != found
        }

    def served(self) -> list[str]:
        """Where the web servers answer another machine, by each IP version that they are published by."""
        return [
            f"http://{f'[{HOST6}]' if ':' in binding['HostIp'] else HOST}:{binding['HostPort']}/"
            for container in self.containers
            for key, bindings in container["NetworkSettings"]["Ports"].items()
            for binding in bindings or ()
            if key.endswith("/tcp") and container["Name"] != "/echo"
        ]

    def about(self, url: str) -> str:
        """All there is to know of the container that is published at ``url``, for a failure's text."""
        port = url.rstrip("/").rpartition(":")[2]
        for container in self.containers:
            settings = container["NetworkSettings"]
            bindings = [b for found in settings["Ports"].values() for b in found or ()]
            if any(binding["HostPort"] == port for binding in bindings):
                inside = f"--net={self._host.exec_root}/netns/{container['Id']}"
                look = "ip addr; ip route; ss -ltn"
                within = self._host.run("nsenter", inside, "sh", "-c", look).stdout
                ruleset = self._host.run("nft", "list", "map", "inet", "gantry", "ports").stdout
                state, networks = json.dumps(container["State"]), json.dumps(settings["Networks"])
                return f"{state}\n{networks}\n{within}\n{ruleset}\n{self._engine.log_text()}"
        return "nobody's"

    def _ids(self) -> set[str]:
        return {container["Id"] for container in self.containers}

    def _interfaces(self) -> tuple[set[int], set[int]]:
        """Host ends that the containers' interfaces name as their peers, and those there are; as interface indices."""
        wanted: set[int] = set()
        for container in self.containers:
            inside = f"--net={self._host.exec_root}/netns/{container['Id']}"
            links = shell(self._host, "nsenter", inside, "ip", "-j", "link")
            wanted |= {link["link_index"] for link in links if "link_index" in link}
        found = shell(self._host, "ip", "-j", "link")
        return wanted, {link["ifindex"] for link in found if link["ifname"].startswith("gveth")}

    def _wanted_ports(self) -> set[tuple[str, int]]:
        return {
            (key.partition("/")[2], int(binding["HostPort"]))
            for container in self.containers
            for key, bindings in container["NetworkSettings"]["Ports"].items()
            for binding in bindings or ()
        }

    def _ports(self) -> set[tuple[str, int]]:
        """(protocol, host port) in the firewall's maps; each leads to a container that runs."""
        found = set()
        for name in ("ports", "ports6"):
            (entry,) = (
                one["map"]
                for one in shell(self._host, "nft", "-j", "list", "map", "inet", "gantry", name)["nftables"]
                if "map" in one
            )
            for key, target in entry.get("elem", ()):
                _, protocol, port = key["concat"]
                assert target["concat"][0] in self.addresses, f"{protocol} {port} leads to {target}"
                found.add((protocol, port))
        return found

    def _bridges(self) -> set[str]:
        names = {"gantry0"}
        return names | {
            f"gbr-{n['Id'][:11]}" for n in self.networks if n["Driver"] == "bridge" and n["Name"] != "bridge"
        }

    def _found_bridges(self) -> set[str]:
        return {link["ifname"] for link in shell(self._host, "ip", "-j", "link", "show", "type", "bridge")}

    def _firewall_bridges(self) -> set[str]:
        listed = shell(self._host, "nft", "-j", "list", "set", "inet", "gantry", "bridges")["nftables"]
        return {name for one in listed if "set" in one for name in one["set"].get("elem", ())}

    def _named(self) -> set[str]:
        """Containers that the DNS server has to know: on a network of the user, or with a port to relay."""
        out = set()
        for container in self.containers:
            networks = {name: e for name, e in container["NetworkSettings"]["Networks"].items() if e["IPAddress"]}
            published = any(container["NetworkSettings"]["Ports"].values())
            relayed = published and not any(endpoint["GlobalIPv6Address"] for endpoint in networks.values())
            if set(networks) - {"bridge"} or relayed:
                out.add(container["Id"])
        return out

    def _records_of_names(self) -> set[str]:
        directory = self._host.outside(f"{self._host.exec_root}/dns")
        return {name.removesuffix(".json") for name in os.listdir(directory) if name.endswith(".json")}

    def _records(self) -> dict[str, tuple[set[str], set[str]]]:
        rows = shell(self._host, "python3", "-c", RECORDS, f"{self._host.data_root}/engine.db")
        by_kind: dict[str, dict[str, Any]] = {"endpoint": {}, "network": {}, "retired": {}}
        for kind, key, body in rows:
            by_kind[kind][key] = body
        leased = [
            address
            for sandbox in by_kind["endpoint"].values()
            for endpoint in sandbox["endpoints"]
            for address in (endpoint["address"], endpoint["address6"])
            if address
        ]
        assert len(leased) == len(set(leased)), "an address was handed out twice"
        return {
            "records of sandboxes": (self._ids(), set(by_kind["endpoint"])),
            "records of networks": ({n["Id"] for n in self.networks}, set(by_kind["network"])),
            "bridges to delete": (set(), set(by_kind["retired"])),
            "leases": (self.addresses, set(leased)),
        }


def settled(engine: Engine, seconds: float = 40.0) -> Look:
    """The look that finds no difference; fails with the differences of the last one."""
    deadline = time.monotonic() + seconds
    while True:
        look = Look(engine)
        found = look.differences()
        if not found:
            return look
        assert time.monotonic() < deadline, f"{found}\n{engine.log_text()}"
        time.sleep(0.2)


def churn(engine: Engine, seed: int, seconds: float) -> None:
    """Changes for a while, both daemons killed in the middle of one, and the engine started again."""
    process = engine.host.popen("python3", CHURN, engine.socket, str(seed), stdin=subprocess.DEVNULL)
    time.sleep(seconds)
    engine.kill("engine.main")
    engine.kill("containerd_py.main")
    process.wait(60)
    engine.start()


def test_what_is_left_is_what_running_containers_need(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    chance = random.Random(SEED)
    with OutsideMachine(engine.host) as outside:
        engine.docker(
            "run", "-d", "--name", "echo", "-p", "8085:80", "busybox", "nc", "-l", "-p", "80", "-e", "cat"
        )  # fmt: skip
        wait_for(lambda: ":80 " in engine.docker("exec", "echo", "netstat", "-ltn").stdout, "the echo server")
        client = outside.popen(
            "socat", "-", f"TCP:{HOST}:8085", stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert client.stdin is not None
        assert client.stdout is not None
        seen = 0
        for number in range(ROUNDS):
            churn(engine, SEED * 1000 + number, chance.uniform(1.0, 4.0))
            look = settled(engine)
            seen += len(look.containers)
            client.stdin.write(b"%d\n" % number)
            assert client.stdout.readline() == b"%d\n" % number, "the open connection broke"
            for url in look.served():
                got = outside.get(url, 10)
                assert got == "served\n", f"{url}\n{look.about(url)}"
        assert seen > ROUNDS, "nothing but the echo server ever ran: nothing was tested"
        client.stdin.close()
        client.wait(10)
        ids = engine.docker("ps", "-aq").stdout.split()
        engine.docker("rm", "-f", *ids)
        engine.docker("network", "prune", "-f")
        assert settled(engine).containers == []
        assert "KeyError" not in engine.log.read_text(), "a request met something half made"
