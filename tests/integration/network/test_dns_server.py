"""The DNS server of containers, asked from inside them with another implementation's codec."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import dnslib
import pytest

from engine.interfaces import NetworkTarget
from engine.network import attach
from engine.network.creation import CreateIpam, CreateRequest
from engine.network.dns.forward import PATIENCE
from engine.network.model import IpamConfig

pytestmark = pytest.mark.root

Run = Callable[[Any], None]

AAAA, PTR, MX, TXT = 28, 12, 15, 16
NXDOMAIN, SERVFAIL = 3, 2

TRIES = 5


def duration(host: Any, answer: tuple[int, list[str]]) -> float:
    """Seconds until container 1 has this answer to a question that the host's servers are asked."""
    before = time.monotonic()
    assert host.resolve(1, "world.example") == answer
    return time.monotonic() - before


class Upstream:
    """A DNS server at 127.0.0.53 of the host (and elsewhere): answers, fails, or is silent, as ``behave`` says."""

    def __init__(self, host: Any, address: str, answer: str, place: str | int | None = None) -> None:
        self.behave = "answer"
        self.seen: list[tuple[str, str]] = []
        self._answer = answer
        self._udp = host.within(place, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._udp.bind((address, 53))
        self._tcp = host.within(place, lambda: socket.create_server((address, 53)))
        threading.Thread(target=self._datagrams, daemon=True).start()
        threading.Thread(target=self._streams, daemon=True).start()

    def _reply(self, data: bytes, how: str) -> bytes | None:
        question = dnslib.DNSRecord.parse(data)
        name = str(question.q.qname)
        self.seen.append((how, name))
        reply = question.reply()
        if self.behave == "silent":
            return None
        if self.behave in ("servfail", "refused") or name.startswith("gone"):
            reply.header.rcode = {"servfail": 2, "refused": 5}.get(self.behave, NXDOMAIN)
        elif name.startswith("large") and how == "udp":
            reply.header.tc = 1
        else:
            count = 100 if name.startswith("large") else 1
            reply.add_answer(*(dnslib.RR(name, rdata=dnslib.A(self._answer), ttl=9) for _ in range(count)))
        return bytes(reply.pack())

    def _datagrams(self) -> None:
        while True:
            data, peer = self._udp.recvfrom(4096)
            reply = self._reply(data, "udp")
            if reply is not None:
                self._udp.sendto(reply, peer)

    def _streams(self) -> None:
        while True:
            connection, _ = self._tcp.accept()
            with connection:
                size = int.from_bytes(connection.recv(2), "big")
                reply = self._reply(connection.recv(size), "tcp")
                if reply is not None:
                    connection.sendall(len(reply).to_bytes(2, "big") + reply)


def use_servers(host: Any, *servers: str) -> None:
    """The private host's own resolv.conf: a file of ours bound over the machine's."""
    path = f"{host.root}/resolv.conf"
    with open(path, "w", encoding="ascii") as file:
        file.writelines(f"nameserver {server}\n" for server in servers)
    if not host.bound_resolv_conf:
        host.bind_mount(path, "/etc/resolv.conf")


async def blue_pair(host: Any, **more: Any) -> None:
    await host.service.create(CreateRequest(name="blue", **more))
    for number in (1, 2):
        await host.up(host.request(number, mode="blue", endpoints={"blue": {"Aliases": ["app", f"alias{number}"]}}))


def test_names_of_containers(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await blue_pair(host, enable_ipv6=True)
        await host.up(host.request(3))
        four, six = host.service.sandbox(f"{2:064x}").endpoints[0].addresses
        for name in ("c2", "C2", "alias2", "h2", "c2.blue", "c2.BLUE"):
            assert host.resolve(1, name) == (0, [four]), name
            assert host.resolve(1, name, AAAA) == (0, [six]), name
            assert host.resolve(1, name, stream=True) == (0, [four]), name
        assert host.resolve(1, "c2", MX) == (0, []), "a known name has no other records, and is not asked elsewhere"
        code, found = host.resolve(1, "app")
        assert (code, len(found)) == (0, 2)
        firsts = {host.resolve(1, "app")[1][0] for _ in range(4)}
        assert firsts == set(found), "each of a service's containers comes first in its turn"
        assert host.resolve(1, ".".join(reversed(four.split("."))) + ".in-addr.arpa", PTR) == (0, ["c2.blue."])
        assert host.resolve(1, "c3")[0] != 0, "a container of the default bridge"
        with pytest.raises(OSError, match="refused"):
            host.resolve(3, "c1", stream=True)

    on_private_host(scenario)


def test_an_ipv4_container_has_an_empty_ipv6_answer(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await blue_pair(host)
        assert host.resolve(1, "c2", AAAA) == (0, []), "NXDOMAIN would end the client's search"

    on_private_host(scenario)


def test_the_world_is_asked_through_the_hosts_servers(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        server = Upstream(host, "127.0.0.53", "198.51.100.7")
        use_servers(host, "127.0.0.53")
        await blue_pair(host)
        assert host.resolve(1, "world.example") == (0, ["198.51.100.7"])
        assert host.resolve(1, "world.example", stream=True) == (0, ["198.51.100.7"])
        assert [how for how, _ in server.seen] == ["udp", "tcp"]
        assert host.resolve(1, "gone.example") == (NXDOMAIN, [])
        assert host.resolve(1, "large.example") == (0, []), "cut off: the client asks again by TCP"
        assert len(host.resolve(1, "large.example", stream=True)[1]) == 100
        for behaviour in ("servfail", "refused"):
            server.behave = behaviour
            assert host.resolve(1, "world.example")[0] in (SERVFAIL, 5), behaviour

    on_private_host(scenario)


def test_failing_and_silent_servers_are_passed_over(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        first, second = Upstream(host, "127.0.0.53", "198.51.100.1"), Upstream(host, "127.0.0.54", "198.51.100.2")
        use_servers(host, "127.0.0.53", "127.0.0.54", "127.0.0.55")
        await blue_pair(host)

        def within(seconds: float, answer: tuple[int, list[str]]) -> bool:
            """Whether the answer can come that fast: on a busy machine it need not each time."""
            return any(duration(host, answer) < seconds for _ in range(TRIES))

        first.behave = "servfail"
        assert within(PATIENCE / 2, (0, ["198.51.100.2"])), "a failure is passed over at once"
        first.behave = "silent"
        assert duration(host, (0, ["198.51.100.2"])) > PATIENCE * 0.9
        assert within(PATIENCE * 2, (0, ["198.51.100.2"]))
        second.behave = "silent"
        assert within(5, (SERVFAIL, [])), "before C libraries give up; nobody knows: not NXDOMAIN"
        use_servers(host, "127.0.0.99")
        await asyncio.sleep(1.1)
        assert within(PATIENCE / 2, (SERVFAIL, [])), "nobody listens there"

    on_private_host(scenario)


def test_it_follows_the_hosts_resolv_conf(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        Upstream(host, "127.0.0.53", "198.51.100.1")
        Upstream(host, "127.0.0.54", "198.51.100.2")
        use_servers(host, "127.0.0.53")
        await blue_pair(host)
        assert host.resolve(1, "world.example") == (0, ["198.51.100.1"])
        await host.service.close()
        use_servers(host, "127.0.0.54")
        await asyncio.sleep(1.1)
        assert host.resolve(1, "world.example") == (0, ["198.51.100.2"]), "with the engine dead as well"
        host.service = host.new_service()
        await host.service.restore(frozenset({f"{1:064x}", f"{2:064x}"}))

    on_private_host(scenario)


def test_servers_of_one_container(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        use_servers(host, "127.0.0.99")
        await host.service.create(CreateRequest(name="blue"))
        await host.up(host.request(1, mode="blue", dns=("127.0.0.1",)))
        Upstream(host, "127.0.0.1", "198.51.100.3", place=1)
        assert host.resolve(1, "world.example") == (0, ["198.51.100.3"]), "--dns is meant inside the container"
        Upstream(host, "192.0.2.2", "198.51.100.4", place=host.outside)
        files = await host.up(host.request(2, mode="blue", dns=("192.0.2.2",), dns_search=("x.example",)))
        assert "# ExtServers: [192.0.2.2]" in files.resolv_conf
        assert "search x.example" in files.resolv_conf.splitlines()
        assert host.resolve(2, "world.example") == (0, ["198.51.100.4"])

    on_private_host(scenario)


def test_internal_networks_ask_nobody(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        server = Upstream(host, "127.0.0.53", "198.51.100.7")
        use_servers(host, "127.0.0.53")
        await blue_pair(host, internal=True)
        assert host.resolve(1, "c2")[0] == 0
        assert host.resolve(1, "secret.example") == (SERVFAIL, [])
        assert server.seen == [], "a question leaked out of an internal network"

    on_private_host(scenario)


def test_a_container_may_serve_dns_itself(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await blue_pair(host)
        everywhere = Upstream(host, "0.0.0.0", "198.51.100.9", place=2)
        assert host.resolve(2, "c1")[0] == 0, "ours still answers inside"
        address = host.service.sandbox(f"{2:064x}").endpoints[0].address
        assert host.resolve(1, "any.example", server=address) == (0, ["198.51.100.9"])
        assert len(everywhere.seen) == 1

    on_private_host(scenario)


def test_names_outlive_the_engine_and_the_server(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await blue_pair(host)
        alive = frozenset({f"{1:064x}", f"{2:064x}"})
        address = host.service.sandbox(f"{2:064x}").endpoints[0].address
        pid = (await host.service.nameserver._ensure()).ask({"op": "ping"})
        pid = (await pid)["pid"]
        await host.service.close()
        assert host.resolve(1, "c2") == (0, [address]), "without an engine"
        host.service = host.new_service()
        await host.service.restore(alive)
        again = (await (await host.service.nameserver._ensure()).ask({"op": "ping"}))["pid"]
        assert again == pid, "adopted, not started again"
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            try:
                answer = await asyncio.to_thread(host.resolve, 1, "c2", stream=True)
            except OSError:
                continue
            if answer == (0, [address]):
                break
        else:
            pytest.fail("the server was not started again")
        assert (await host.service.nameserver.statistics())["containers"] == 2

    on_private_host(scenario)


def test_a_server_of_another_version_is_replaced(on_private_host: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(host: Any) -> None:
        await blue_pair(host)
        old = (await (await host.service.nameserver._ensure()).ask({"op": "ping"}))["pid"]
        await host.service.close()
        monkeypatch.setattr("engine.network.nameserver.VERSION", "another")
        host.service = host.new_service()
        await host.service.restore(frozenset({f"{1:064x}", f"{2:064x}"}))
        new = (await (await host.service.nameserver._ensure()).ask({"op": "ping"}))["pid"]
        assert new != old
        assert host.resolve(1, "c2")[0] == 0

    on_private_host(scenario)


def test_names_follow_connect_disconnect_and_the_end(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        service = host.service
        await blue_pair(host)
        pool = IpamConfig(subnet="10.9.0.0/24")
        await service.create(CreateRequest(name="red", ipam=CreateIpam(config=[pool])))
        three = host.request(3)
        await host.up(three)

        class Directory:
            def network_target(self, reference: str) -> NetworkTarget:
                return NetworkTarget(request=three, running=True)

        service.containers = Directory()
        await attach.connect(service, "blue", "c3", {"Aliases": ["late"]})
        address = service.sandbox(three.container_id).on(service.registry.find("blue").id).address
        assert host.resolve(1, "late") == (0, [address])
        assert host.resolve(3, "c1")[0] == 0, "from the default bridge to our server by connecting"
        await attach.connect(service, "red", "c3", {})
        assert host.resolve(1, "c3") == (0, [address]), "addresses on other networks are not shown"
        await attach.disconnect(service, "blue", "c3", force=False)
        assert host.resolve(1, "late")[0] != 0
        assert host.resolve(3, "c1")[0] != 0
        assert host.resolve(3, "c3") == (0, ["10.9.0.2"])
        await service.close_sandbox(f"{2:064x}")
        assert host.resolve(1, "c2")[0] != 0

    on_private_host(scenario)


def test_a_signal_ends_the_server(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await blue_pair(host)
        connection = await host.service.nameserver._ensure()
        os.kill((await connection.ask({"op": "ping"}))["pid"], signal.SIGTERM)
        await asyncio.wait_for(connection.gone(), 3)

    on_private_host(scenario)


def test_hostile_bytes_change_nothing(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await blue_pair(host)

        def throw() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for size in range(0, 600, 7):
                    sock.sendto(os.urandom(size), ("127.0.0.11", 53))
                sock.sendto(b"\0\7\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1", ("127.0.0.11", 53))
            with socket.create_connection(("127.0.0.11", 53), 2) as stream:
                stream.sendall(b"\xff\xff" + os.urandom(500))
            with socket.create_connection(("127.0.0.11", 53), 2) as stream:
                stream.sendall(b"\0\2ab\0\0")

        host.within(1, throw)
        assert host.resolve(1, "c2")[0] == 0

    on_private_host(scenario)


def test_many_questions_at_once(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await blue_pair(host)
        address = host.service.sandbox(f"{2:064x}").endpoints[0].address
        packet = dnslib.DNSRecord.question("c2").pack()

        def flood() -> int:
            got = 0
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(20)
                for _ in range(20):
                    for _ in range(50):
                        sock.sendto(packet, ("127.0.0.11", 53))
                    for _ in range(50):
                        got += address in str(dnslib.DNSRecord.parse(sock.recv(4096)).rr)
            return got

        assert host.within(1, flood) == 1000

    on_private_host(scenario)
