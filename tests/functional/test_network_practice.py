"""Networks as users of Docker meet them: restarts, many at once, stopped containers, other networks' ports, flags."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for
from tests.support.outside import HOST, HOST6, OUTSIDE6, OutsideMachine

MANY = 100
STARTER = """
import concurrent.futures, http.client, json, socket, sys

class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])

def call(method, path, body=None):
    connection = Connection("engine")
    connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status < 300, (path, answer.status, text)
    return json.loads(text) if text else None

def start(number):
    body = {
        "Image": "busybox",
        "Cmd": ["httpd", "-f", "-p", "80", "-h", "/www"],
        "ExposedPorts": {"80/tcp": {}},
        "HostConfig": {"NetworkMode": "many", "PortBindings": {"80/tcp": [{"HostPort": str(20000 + number)}]}},
    }
    made = call("POST", f"/containers/create?name=many{number}", body)["Id"]
    call("POST", f"/containers/{made}/start")

with concurrent.futures.ThreadPoolExecutor(int(sys.argv[2])) as pool:
    list(pool.map(start, range(int(sys.argv[2]))))
"""
FETCHER = """
import sys, urllib.request
for port in range(20000, 20000 + int(sys.argv[1])):
    print(urllib.request.urlopen(f"http://192.0.2.1:{port}/", timeout=20).read().decode().strip())
"""
ECHO6 = (
    "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 53));"
    "data, peer = s.recvfrom(99); s.sendto(data + peer[0].encode(), peer)"
)
ASK6 = (
    "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(5);"
    f"s.sendto(b'ask ', ('{HOST6}', 5353)); print(s.recvfrom(99)[0].decode())"
)

TELL = (
    "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 40514))\n"
    f"while True: s.sendto(b'line\\n', ('{HOST}', 5514)); time.sleep(0.1)"
)


class World:
    """An engine and a machine beside it."""

    def __init__(self, engine: Engine, outside: OutsideMachine) -> None:
        self.engine = engine
        self.host = engine.host
        self.outside = outside

    def docker(self, *arguments: str, timeout: float = 60.0) -> str:
        return self.engine.docker(*arguments, timeout=timeout).stdout.strip()

    def fails(self, *arguments: str) -> str:
        done = self.engine.docker(*arguments, check=False)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def sh(self, name: str, script: str) -> str:
        done = self.engine.docker("exec", name, "sh", "-c", script, check=False)
        return done.stdout + done.stderr

    def sleeper(self, name: str, *options: str) -> None:
        self.docker("run", "-d", "--name", name, *options, "busybox", "sleep", "6000")

    def web(self, name: str, *options: str) -> None:
        self.docker("run", "-d", "--name", name, *options, "busybox", "httpd", "-f", "-p", "[::]:80", "-h", "/www")
        wait_for(lambda: "served" in self.sh(name, "wget -qO- http://127.0.0.1/"), name)

    def endpoint(self, name: str, network: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", name))[
            network
        ]
        return found


@pytest.fixture(scope="module")
def machines(make_engine: Callable[..., Engine]) -> Iterator[World]:
    engine = make_engine()
    with OutsideMachine(engine.host) as outside:
        yield World(engine, outside)


@pytest.fixture
def world(machines: World) -> Iterator[World]:
    """A world whose containers and networks are removed after the test."""
    yield machines
    ids = machines.docker("ps", "-aq").split()
    if ids:
        machines.docker("rm", "-fv", *ids, timeout=300)
    machines.docker("network", "prune", "-f")


def test_a_fixed_address_outlives_restarts(world: World) -> None:
    world.docker("network", "create", "--ipv6", "--subnet", "10.71.0.0/24", "--subnet", "fd71::/64", "fixed")
    mac = "02:00:00:00:00:71"
    world.sleeper(
        "kept",
        "--network",
        f"name=fixed,ip=10.71.0.9,ip6=fd71::9,mac-address={mac}",
        "--label",
        "x",
        "--restart",
        "always",
    )
    world.sleeper("other", "--network", "fixed")

    def holds() -> bool:
        found = world.endpoint("kept", "fixed")
        assert (found["IPAddress"], found["GlobalIPv6Address"], found["MacAddress"]) == ("10.71.0.9", "fd71::9", mac)
        shown = world.sh("kept", "ip addr show eth0")
        assert all(text in shown for text in ("10.71.0.9/24", "fd71::9/64", mac)), shown
        return "10.71.0.9" in world.sh("other", "nslookup kept")

    assert holds()
    for _ in range(3):
        world.docker("restart", "-t", "0", "kept")
        assert holds()
    pid = world.docker("inspect", "-f", "{{.State.Pid}}", "kept")
    world.docker("kill", "kept")
    world.docker("start", "kept")
    assert world.docker("inspect", "-f", "{{.State.Pid}}", "kept") != pid
    assert holds()
    assert "Address already in use" in world.fails(
        "run", "--rm", "--network", "fixed", "--ip", "10.71.0.9", "busybox", "true"
    )
    assert "Address already in use" in world.fails(
        "run", "--rm", "--network", "fixed", "--ip", "10.71.0.1", "busybox", "true"
    ), "the gateway's"


def test_a_hundred_containers_at_once(world: World) -> None:
    world.docker("network", "create", "--subnet", "10.72.0.0/24", "many")
    world.host.check("python3", "-c", STARTER, world.engine.socket, str(MANY), timeout=300)
    (network,) = json.loads(world.docker("network", "inspect", "many"))
    addresses = {member["IPv4Address"] for member in network["Containers"].values()}
    assert len(network["Containers"]) == len(addresses) == MANY
    answers = world.outside.run("python3", "-c", FETCHER, str(MANY), timeout=120)
    assert answers.stdout.splitlines() == ["served"] * MANY, answers.stderr
    asked = "; ".join(f"wget -qO- http://many{number}/ || echo many{number}" for number in range(0, MANY, 7))
    assert set(world.sh("many50", asked).split()) == {"served"}


def test_a_network_goes_while_its_containers_are_stopped(world: World) -> None:
    world.docker("network", "create", "brief")
    world.sleeper("stopped", "--network", "brief")
    assert "has active endpoints" in world.fails("network", "rm", "brief")
    world.docker("stop", "-t", "0", "stopped")
    world.docker("network", "rm", "brief")
    assert "network brief not found" in world.fails("start", "stopped")
    world.docker("network", "create", "brief")
    world.docker("start", "stopped")
    assert world.endpoint("stopped", "brief")["IPAddress"]


def test_a_published_port_is_reached_from_other_networks_and_namespaces(world: World) -> None:
    for name in ("front", "back"):
        world.docker("network", "create", name)
    world.docker("network", "create", "--internal", "cell")
    world.web("server", "--network", "back", "-p", "8072:80")
    for name in ("front", "back", "bridge"):
        reached = world.docker("run", "--rm", "--network", name, "busybox", "wget", "-qO-", f"http://{HOST}:8072/")
        assert reached == "served", name
    assert world.docker("run", "--rm", "--network", "host", "busybox", "wget", "-qO-", "http://127.0.0.1:8072/")
    assert world.sh("server", f"wget -qO- http://{HOST}:8072/") == "served\n"
    world.sleeper("prisoner", "--network", "cell")
    for target in (f"{HOST}:8072", f"{world.endpoint('server', 'back')['IPAddress']}"):
        assert "served" not in world.sh("prisoner", f"timeout 2 wget -qO- http://{target}/")


def test_udp_by_ipv6_and_the_clients_own_address(world: World) -> None:
    world.docker("network", "create", "--ipv6", "six")
    world.sleeper("udp6", "--network", "six", "-p", "5353:53/udp")
    pid = world.docker("inspect", "-f", "{{.State.Pid}}", "udp6")
    server = world.host.popen("nsenter", "-t", pid, "--net", "python3", "-c", ECHO6)
    wait_for(lambda: ":53 " in world.sh("udp6", "netstat -lun"), "the UDP server")
    assert world.outside.check("python3", "-c", ASK6) == f"ask {OUTSIDE6}\n"
    assert server.wait(10) == 0


def test_links_aliases_and_short_ids_on_a_network_of_the_user(world: World) -> None:
    world.docker("network", "create", "blue")
    world.web("server", "--network", "blue")
    world.sleeper("client", "--network", "blue", "--link", "server:nick")
    short = world.docker("ps", "-q", "--filter", "name=server")
    for name in ("nick", "server", short):
        assert world.sh("client", f"wget -qO- http://{name}/") == "served\n", name
    world.sleeper("stranger", "--network", "blue")
    assert "served" not in world.sh("stranger", "wget -qO- http://nick/ 2>&1"), "a link is its container's own"
    world.docker("restart", "-t", "0", "server")
    wait_for(lambda: world.sh("client", "wget -qO- http://nick/") == "served\n", "the restarted server by its link")


def test_files_are_named_and_written_as_dockers(world: World) -> None:
    world.sleeper("named", "--hostname", "inner.example.org")
    assert world.sh("named", "cat /etc/hostname; hostname") == "inner.example.org\ninner.example.org\n"
    found = json.loads(world.docker("inspect", "named"))[0]
    for key, name in (("HostnamePath", "hostname"), ("HostsPath", "hosts"), ("ResolvConfPath", "resolv.conf")):
        assert found[key].endswith(f"/containers/{found['Id']}/{name}")
        inside = world.sh("named", f"cat /etc/{name}")
        assert inside == Path(world.host.outside(found[key])).read_text()
        assert f" /etc/{name} " in world.sh("named", "cat /proc/self/mountinfo")
    plain = world.docker("run", "--rm", "busybox", "cat", "/etc/hostname")
    assert len(plain) == 12
    assert set(plain) <= set("0123456789abcdef")
    shared = world.docker(
        "run", "--rm", "--network", "container:named", "busybox", "cat", "/etc/hostname", "/etc/hosts"
    )
    assert shared.startswith("inner.example.org\n")
    assert shared.endswith("\tinner.example.org") or "inner.example.org" in shared.splitlines()[-1]


@pytest.fixture(scope="module")
def flagged(make_engine: Callable[..., Engine]) -> Engine:
    """An engine with the daemon's flags about networks."""
    return make_engine(
        "--default-address-pool", "base=10.210.0.0/22,size=24", "--default-address-pool", "base=fd21::/48,size=64",
        "--mtu", "1400", "--dns", "192.0.2.53", "--dns-search", "corp.example", "--dns-opt", "ndots:2",
        "--host-gateway-ip", "192.0.2.99",
    )  # fmt: skip


def test_default_address_pools(flagged: Engine) -> None:
    made = ["one", "two", "three"]
    for name in made:
        flagged.docker("network", "create", "--ipv6", name)
    shape = "{{range .IPAM.Config}}{{.Subnet}} {{end}}"
    subnets = flagged.docker("network", "inspect", "-f", shape, "bridge", *made).stdout.splitlines()
    assert [line.split()[0] for line in subnets] == [f"10.210.{n}.0/24" for n in range(4)]
    assert [line.split()[1] for line in subnets[1:]] == ["fd21::/64", "fd21:0:0:1::/64", "fd21:0:0:2::/64"]
    full = flagged.docker("network", "create", "four", check=False)
    assert "all predefined address pools have been fully subnetted" in full.stderr
    flagged.docker("network", "rm", "two")
    flagged.docker("network", "create", "four")
    assert flagged.docker("network", "inspect", "-f", shape, "four").stdout.split() == ["10.210.2.0/24"]
    flagged.docker("network", "rm", "one", "three", "four")


def test_flags_about_names_and_mtu(flagged: Engine) -> None:
    flagged.docker("network", "create", "named")
    options = ("--add-host", "gate:host-gateway", "busybox", "sh", "-c")
    script = "cat /etc/resolv.conf /etc/hosts; ip link show eth0"
    text = flagged.docker("run", "--rm", *options, script).stdout
    assert "nameserver 192.0.2.53\nsearch corp.example\noptions ndots:2\n" in text
    assert "192.0.2.99\tgate\n" in text
    assert " mtu 1400 " in text
    text = flagged.docker("run", "--rm", "--network", "named", *options, script).stdout
    assert "nameserver 127.0.0.11\nsearch corp.example\noptions ndots:2\n" in text
    assert "# ExtServers: [192.0.2.53]" in text
    assert " mtu 1400 " in text
    flagged.docker("network", "rm", "named")


def test_a_flow_of_datagrams_outlives_a_recreated_container(world: World) -> None:
    """Compose recreates a service; a client that never pauses is served by the new container."""
    client = world.outside.popen("python3", "-c", TELL, stdin=subprocess.DEVNULL)

    def told() -> None:
        """A container that publishes the port gets what the client sends."""
        world.sleeper("syslog", "-p", "5514:514/udp")
        pid = world.docker("inspect", "-f", "{{.State.Pid}}", "syslog")
        got = world.host.run(
            "nsenter", "-t", pid, "--net", "timeout", "15", "socat", "-u", "UDP-RECV:514,readbytes=5", "-"
        )
        assert got.stdout == "line\n", got.stderr

    try:
        told()
        world.docker("rm", "-f", "syslog")
        world.sleeper("taker")
        told()
    finally:
        world.host.run("sh", "-c", "kill $(pgrep -f '[s]endto.*5514')")
        client.wait(10)
