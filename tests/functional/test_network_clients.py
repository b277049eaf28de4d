"""Networks, names and ports as the docker command shows them, with packets between containers and machines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for
from tests.support.outside import HOST, HOST6, OUTSIDE, OUTSIDE6, OutsideMachine

WEB = ("busybox", "httpd", "-f", "-p", "[::]:80", "-h", "/www")
ECHO = (
    "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53));"
    "data, peer = s.recvfrom(99); s.sendto(data + peer[0].encode(), peer)"
)
HOLD = f"import socket, sys; s = socket.create_connection(('{HOST}', 8080), 20); print(flush=True); sys.stdin.read()"
"""A connection that lasts until standard input ends; a line says that it is made."""

ASK = (
    "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20);"
    f"s.sendto(b'ask ', ('{HOST}', 5353)); print(s.recvfrom(99)[0].decode())"
)


class World:
    """An engine, a client in front of it, and another machine."""

    def __init__(self, engine: Engine, outside: OutsideMachine) -> None:
        self.engine = engine
        self.host = engine.host
        self.outside = outside

    def docker(self, *arguments: str, **options: Any) -> str:
        """Output of a docker command that succeeds."""
        return self.engine.docker(*arguments, **options).stdout.strip()

    def fails(self, *arguments: str) -> str:
        """What a docker command says that fails."""
        done = self.engine.docker(*arguments, check=False)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def web(self, name: str, *options: str) -> str:
        """A web server called ``name`` that answers, at its first address."""
        self.docker("run", "-d", "--name", name, *options, *WEB)
        wait_for(lambda: "served" in self.sh(name, "wget -qO- http://127.0.0.1/"), name)
        return self.address(name)

    def address(self, name: str, key: str = "IPAddress") -> str:
        """The first address of a container."""
        networks = json.loads(self.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", name))
        return str(next(iter(networks.values()))[key])

    def sh(self, name: str, script: str) -> str:
        """Output of a script in a container; failures show as text."""
        done = self.engine.docker("exec", name, "sh", "-c", script, check=False)
        return done.stdout + done.stderr

    def get(self, url: str, seconds: float = 20) -> str:
        """The body at ``url`` as the host sees it."""
        return self.host.run("curl", "-gs", "-m", str(seconds), url).stdout


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
        machines.docker("rm", "-fv", *ids)
    machines.docker("network", "prune", "-f")


def test_names_aliases_and_services(world: World) -> None:
    world.docker("network", "create", "--ipv6", "blue")
    first = world.web("one", "--network", "blue", "--network-alias", "service")
    second = world.web("two", "--network", "blue", "--network-alias", "service", "--hostname", "host2")
    six = world.address("two", "GlobalIPv6Address")
    short = world.docker("ps", "-q", "--filter", "name=two")
    for name in ("two", short, "host2", "two.blue"):
        assert world.sh("one", f"wget -qO- http://{name}/") == "served\n", name
    found = world.sh("one", "nslookup service")
    assert first in found
    assert second in found
    assert six in world.sh("one", "nslookup two")
    assert "two.blue" in world.sh("one", f"nslookup {second}")
    assert world.sh("one", f"wget -qO- 'http://[{six}]/'") == "served\n"
    world.docker("rename", "two", "renamed")
    assert world.sh("one", "wget -qO- http://renamed/") == "served\n"
    assert "bad address" in world.sh("one", "wget -qO- http://two/")


def test_networks_are_apart(world: World) -> None:
    world.docker("network", "create", "blue")
    world.docker("network", "create", "--internal", "inner")
    target = world.web("inblue", "--network", "blue")
    world.web("inbridge")
    world.web("ininner", "--network", "inner")
    for name in ("inbridge", "ininner"):
        assert "served" not in world.sh(name, f"timeout 2 wget -qO- http://{target}/ 2>&1"), name
    assert world.host.run("curl", "-s", "-m", "20", f"http://{target}/").stdout == "served\n", "the host may"
    assert world.outside.get(f"http://{target}/", 1) == "", "the other machine may not"
    assert "unreachable" in world.sh("ininner", f"timeout 2 wget -qO- http://{OUTSIDE}/ 2>&1")


def test_published_ports_of_every_form(world: World) -> None:
    world.web("all", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", f"{HOST}:8082:80", "-p", "9000-9002:80")
    assert world.get("http://127.0.0.1:8080/") == world.get(f"http://{HOST}:8080/") == "served\n"
    wait_for(lambda: world.get("http://[::1]:8080/") == "served\n", "the IPv6 loopback")
    assert world.outside.get(f"http://{HOST}:8080/") == "served\n"
    assert world.get("http://127.0.0.1:8081/") == "served\n"
    assert world.outside.get(f"http://{HOST}:8081/", 1) == "", "published on the loopback alone"
    assert world.outside.get(f"http://{HOST}:8082/") == "served\n"
    assert world.get("http://127.0.0.1:8082/", 1) == ""
    assert world.get("http://127.0.0.1:9000/") == "served\n"
    assert world.sh("all", f"wget -qO- http://{HOST}:8080/") == "served\n", "itself by the host's address"
    lines = world.docker("port", "all").splitlines()
    assert "80/tcp -> 127.0.0.1:8081" in lines
    assert "80/tcp -> 0.0.0.0:9000" in lines
    assert "0.0.0.0:8080->80/tcp" in world.docker("ps", "--format", "{{.Ports}}")


def test_ranges_random_ports_and_publish_all(world: World) -> None:
    world.docker("run", "-d", "--name", "range", "-p", "7000-7002:80-82", "-p", "90", "busybox", "sleep", "600")
    lines = world.docker("port", "range").splitlines()
    assert {f"{80 + n}/tcp -> 0.0.0.0:{7000 + n}" for n in range(3)} <= set(lines)
    assert any(line.startswith("90/tcp -> 0.0.0.0:") for line in lines)
    world.web("exposed", "-P", "--expose", "80", "--expose", "53/udp")
    port = world.docker("port", "exposed", "80/tcp").splitlines()[0].rpartition(":")[2]
    assert world.outside.get(f"http://{HOST}:{port}/") == "served\n"
    assert world.docker("port", "exposed", "53/udp").startswith("0.0.0.0:")


def test_udp_and_the_clients_own_address(world: World) -> None:
    world.docker("run", "-d", "--name", "udp", "-p", "5353:53/udp", "busybox", "sleep", "600")
    pid = world.docker("inspect", "-f", "{{.State.Pid}}", "udp")
    server = world.host.popen("nsenter", "-t", pid, "--net", "python3", "-c", ECHO)
    wait_for(lambda: ":53 " in world.sh("udp", "netstat -lun"), "the UDP server")
    assert world.outside.check("python3", "-c", ASK) == f"ask {OUTSIDE}\n"
    assert server.wait(20) == 0
    world.web("tcp", "-p", "8080:80")
    hexadecimal = "".join(f"{int(part):02X}" for part in reversed(OUTSIDE.split(".")))
    with world.outside.popen("python3", "-c", HOLD, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None and client.stdout.readline() == b"\n"
        assert hexadecimal in world.sh("tcp", "cat /proc/net/tcp /proc/net/tcp6")


def test_ipv6_from_another_machine(world: World) -> None:
    world.docker("network", "create", "--ipv6", "--subnet", "fd55::/64", "six")
    world.web("web", "--network", "six", "-p", "8080:80")
    assert world.outside.get(f"http://[{HOST6}]:8080/") == "served\n"
    assert world.outside.get("http://[fd55::2]/", 1) == ""
    server = world.outside.popen("python3", "-m", "http.server", "-b", OUTSIDE6, "8000", stderr=subprocess.DEVNULL)
    try:
        wait_for(
            lambda: "Directory" in world.sh("web", f"timeout 2 wget -qO- http://[{OUTSIDE6}]:8000/"), "IPv6 going out"
        )
    finally:
        world.host.run("sh", "-c", "kill $(pgrep -f 'http.server -b')")
        server.wait()


def test_conflicts_are_named(world: World) -> None:
    world.web("first", "-p", "8080:80")
    said = world.fails("run", "--name", "second", "-p", "8080:80", "busybox", "true")
    assert "driver failed programming external connectivity on endpoint second" in said
    assert "Bind for 0.0.0.0:8080 failed: port is already allocated" in said
    assert world.docker("inspect", "-f", "{{.State.Status}}", "second") == "created"
    world.docker("rm", "-f", "first")
    world.docker("start", "second")


def test_links(world: World) -> None:
    world.web("database", "--expose", "5432", "-e", "SECRET=x")
    world.docker("run", "-d", "--name", "app", "--link", "database:db", "busybox", "sleep", "600")
    address = world.address("database")
    short = world.docker("inspect", "-f", "{{.Config.Hostname}}", "database")
    assert f"{address}\tdb {short} database\n" in world.sh("app", "cat /etc/hosts")
    assert world.sh("app", "wget -qO- http://db/") == "served\n"
    environment = world.docker("run", "--rm", "--link", "database:db", "busybox", "env").splitlines()
    assert f"DB_PORT_5432_TCP=tcp://{address}:5432" in environment
    assert "DB_ENV_SECRET=x" in environment
    world.docker("stop", "-t", "0", "database")
    for number in range(4):
        # The address is free once the kernel has removed the interface.
        world.docker("run", "-d", "--name", f"taker{number}", "busybox", "sleep", "600")
        if world.address(f"taker{number}") == address:
            break
    world.docker("start", "database")
    assert world.address("database") != address
    assert f"{world.address('database')}\tdb {short} database\n" in world.sh("app", "cat /etc/hosts")
    assert "Cannot link to a non running container" in world.fails(
        "run", "--link", "nobody:x", "busybox", "true"
    ) or "could not get container for nobody" in world.fails("run", "--link", "nobody:x", "busybox", "true")


def test_added_hosts_and_dns_options(world: World) -> None:
    hosts = world.docker(
        "run", "--rm", "--add-host", "gate:host-gateway", "--add-host", "six=[fd00::9]", "--hostname", "me",
        "--domainname", "example.org", "busybox", "cat", "/etc/hosts",
    )  # fmt: skip
    assert "172.17.0.1\tgate" in hosts
    assert "fd00::9\tsix" in hosts
    assert "\tme.example.org me" in hosts
    options = ("--dns", "192.0.2.2", "--dns-search", "a.example", "--dns-option", "ndots:3")
    text = world.docker("run", "--rm", *options, "busybox", "cat", "/etc/resolv.conf")
    assert "nameserver 192.0.2.2\nsearch a.example\noptions ndots:3\n" in text
    world.docker("network", "create", "blue")
    text = world.docker("run", "--rm", "--network", "blue", *options, "busybox", "cat", "/etc/resolv.conf")
    assert "nameserver 127.0.0.11\nsearch a.example\noptions ndots:3\n" in text
    assert "# ExtServers: [192.0.2.2]" in text


def test_connect_and_disconnect_while_it_runs(world: World) -> None:
    world.docker("network", "create", "--subnet", "10.77.0.0/24", "blue")
    world.web("web", "--network", "blue")
    world.docker("run", "-d", "--name", "client", "busybox", "sleep", "600")
    assert world.sh("client", "timeout 1 wget -qO- http://web/") != "served\n"
    world.docker("network", "connect", "--ip", "10.77.0.99", "--alias", "nick", "blue", "client")
    assert world.sh("client", "wget -qO- http://web/") == "served\n"
    assert "10.77.0.99" in world.sh("web", "nslookup nick")
    assert "10.77.0.99\t" in world.sh("client", "cat /etc/hosts")
    world.docker("network", "disconnect", "blue", "client")
    assert world.sh("client", "timeout 1 wget -qO- http://web/") != "served\n"
    assert "10.77.0.99" not in world.sh("client", "cat /etc/hosts")
    assert "is not connected" in world.fails("network", "disconnect", "blue", "client")
    assert "nobody" in world.fails("network", "connect", "blue", "nobody")


def test_other_modes(world: World) -> None:
    world.web("web")
    assert world.docker("run", "--rm", "--network", "container:web", "busybox", "wget", "-qO-", "http://127.0.0.1/")
    assert "lo:" in world.docker("run", "--rm", "--network", "none", "busybox", "ifconfig", "-a").replace("lo ", "lo:")
    assert "wire" in world.docker("run", "--rm", "--network", "host", "busybox", "ip", "link")
    said = world.fails("run", "--rm", "--network", "nothere", "busybox", "true")
    assert "network nothere not found" in said


def test_macvlan(world: World) -> None:
    world.docker(
        "network", "create", "-d", "macvlan", "--subnet", "192.0.2.0/24", "--gateway", OUTSIDE,
        "--ip-range", "192.0.2.128/25", "-o", "parent=wire", "lan",
    )  # fmt: skip
    world.web("web", "--network", "lan")
    assert world.outside.get(f"http://{world.address('web')}/") == "served\n"
    said = world.fails("network", "create", "-d", "ipvlan", "-o", "parent=wire", "nolan")
    assert "already using parent interface wire" in said


def test_inspect_filters_events_and_prune(world: World) -> None:
    since = world.docker("info", "-f", "{{.SystemTime}}")
    world.docker("network", "create", "--label", "a=b", "-o", "com.docker.network.driver.mtu=1400", "blue")
    world.docker("network", "create", "red")
    world.web("web", "--network", "blue", "--mac-address", "02:00:00:00:00:07")
    (found,) = json.loads(world.docker("network", "inspect", "blue"))
    (member,) = found["Containers"].values()
    assert (member["Name"], member["MacAddress"]) == ("web", "02:00:00:00:00:07")
    assert found["Options"] == {"com.docker.network.driver.mtu": "1400"}
    assert "mtu 1400" in world.sh("web", "ip link show eth0")
    names = world.docker("network", "ls", "--filter", "label=a=b", "--format", "{{.Name}}")
    assert names == "blue"
    assert "has active endpoints" in world.fails("network", "rm", "blue")
    assert "red" in world.docker("network", "prune", "-f")
    assert "pre-defined network" in world.fails("network", "rm", "bridge")
    until = world.docker("info", "-f", "{{.SystemTime}}")
    told = world.docker(
        "events", "--since", since, "--until", until, "--filter", "type=network", "--format", "{{.Action}}"
    )
    assert told.splitlines() == ["create", "create", "connect", "destroy"]


def test_names_and_ports_outlive_the_daemons(world: World) -> None:
    world.docker("network", "create", "blue")
    world.docker(
        "run", "-d", "--name", "client", "--network", "blue", "busybox", "sh", "-c",
        "while true; do nslookup web >/dev/null 2>&1 && wget -qO- http://web/ >> /got; sleep 0.05; done",
    )  # fmt: skip
    world.web("web", "--network", "blue", "-p", "8080:80")
    engine = world.engine
    engine.kill("engine.main")
    engine.kill("containerd_py.main")
    before = _served(world)
    for _ in range(5):
        assert world.outside.get(f"http://{HOST}:8080/") == "served\n", "with both daemons dead"
    wait_for(lambda: _served(world) > before + 3, "the client to find the server by name")
    engine.start()
    assert world.outside.get(f"http://{HOST}:8080/") == "served\n"
    world.web("late", "--network", "blue")
    assert world.sh("late", "wget -qO- http://web/") == "served\n"


def _served(world: World) -> int:
    """How many answers the client has got; read without the daemons."""
    (pid,) = (p for p in world.host.pids_of("nslookup web") if world.host.processes()[p].startswith("sh -c while"))
    done = subprocess.run(["wc", "-l", f"/proc/{pid}/root" + "/got"], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[0]) if done.stdout else 0


def test_an_open_connection_outlives_the_daemons(world: World) -> None:
    world.docker("run", "-d", "--name", "echo", "-p", "8085:80", "busybox", "nc", "-l", "-p", "80", "-e", "cat")
    wait_for(lambda: ":80 " in world.sh("echo", "netstat -ltn"), "the server")
    client = world.host.popen(
        "socat", "-", f"TCP:{HOST}:8085", stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert client.stdin is not None
    assert client.stdout is not None

    def said(line: bytes) -> bytes:
        client.stdin.write(line)  # type: ignore[union-attr] # asserted above
        return client.stdout.readline()  # type: ignore[union-attr] # asserted above

    assert said(b"before\n") == b"before\n"
    world.engine.kill("engine.main")
    world.engine.kill("containerd_py.main")
    assert said(b"while both are dead\n") == b"while both are dead\n"
    world.engine.start()
    assert said(b"after\n") == b"after\n"
    client.stdin.close()
    client.wait(10)
