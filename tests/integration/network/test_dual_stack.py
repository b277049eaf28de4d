"""IPv6: addresses, published ports, isolation, gateway modes; and rules of administrators."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Interface
from typing import Any

import pytest

from engine.network import rtnl
from engine.network.creation import CreateIpam, CreateRequest
from engine.network.model import IpamConfig
from engine.network.netlink import NETLINK_ROUTE, Netlink
from oci.errors import Internal

pytestmark = pytest.mark.root

Run = Callable[[Any], None]

OUTSIDE6, HOST6 = "2001:db8::2", "2001:db8::1"


def wire_ipv6(host: Any) -> None:
    """IPv6 on the wire to the other machine."""

    def give(name: str, address: str, gateway: str) -> None:
        netlink = Netlink(NETLINK_ROUTE)
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w", encoding="ascii") as file:
            file.write("0")
        link = rtnl.find_link(netlink, name)
        assert link is not None
        netlink.request(rtnl.new_address(link.index, IPv6Interface(f"{address}/64")))
        if gateway:
            netlink.request(rtnl.default_route(IPv6Address(gateway), link.index))
        netlink.close()

    give("wire", HOST6, "")
    host.within(host.outside, lambda: give("eth0", OUTSIDE6, HOST6))


def six(name: str, **more: Any) -> CreateRequest:
    more.setdefault("ipam", CreateIpam(config=[IpamConfig(subnet="fd06::/64")]))
    return CreateRequest(name=name, enable_ipv6=True, **more)


def test_published_ports_by_both_versions(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        wire_ipv6(host)
        await host.service.create(six("blue"))
        await host.up(host.request(1, mode="blue", ports={"80/tcp": "8080", "81/tcp": "::1:8081"}))
        await host.up(host.request(2, mode="blue"))
        host.serve(1, 80, "::")
        assert host.ask(host.outside, HOST6, 8080) == OUTSIDE6, "the client's own address"
        assert host.ask(host.outside, host.host_address, 8080) == f"::ffff:{host.outside_address}"
        assert host.ask(2, HOST6, 8080) == "fd06::1", "a neighbour, by hairpin"
        assert host.ask(1, HOST6, 8080) == "fd06::1", "itself, by hairpin"
        assert host.ask(None, HOST6, 8080) == HOST6
        assert host.ask(host.outside, "fd06::2", 80, 0.5) == "", "published on the host, not on the container's address"
        ports = host.service.settings(host.request(1, mode="blue", ports={"80/tcp": "8080"}))["Ports"]
        assert ports["80/tcp"] == [
            {"HostIp": "0.0.0.0", "HostPort": "8080"},
            {"HostIp": "::", "HostPort": "8080"},
        ]
        with pytest.raises(Internal, match=r"Bind for \[::\]:8080 failed: port is already allocated"):
            await host.up(host.request(3, mode="blue", ports={"80/tcp": ":::8080"}))

    on_private_host(scenario)


def test_ports_of_containers_without_ipv6_are_published_by_it(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        wire_ipv6(host)
        ports = {"80/tcp": "8080", "81/tcp": "0.0.0.0:8081", "82/tcp": "127.0.0.1:8082"}
        request = host.request(1, ports=ports)
        await host.up(request)
        for port in (80, 81, 82):
            host.serve(1, port)
        await host.service.nameserver.statistics()  # a question behind the one that opened them
        assert host.ask(host.outside, HOST6, 8080) == host.ask(None, HOST6, 8080) == "172.17.0.1"
        assert host.ask(None, "::1", 8080) == host.ask(None, "::1", 8081) == "172.17.0.1"
        for port in (8081, 8082):
            assert host.ask(host.outside, HOST6, port) == "", "asked for on IPv4 alone"
        found = host.service.settings(request)["Ports"]
        assert found["80/tcp"] == [{"HostIp": ip, "HostPort": "8080"} for ip in ("0.0.0.0", "::")]
        assert [binding["HostIp"] for binding in found["81/tcp"]] == ["0.0.0.0"]

        nft("add rule inet gantry user-published iifname != lo tcp dport 8080 drop")
        assert host.ask(host.outside, HOST6, 8080, 0.5) == "", "the administrator's rules hold for what is relayed"
        assert host.ask(None, "::1", 8080) == "172.17.0.1"
        nft("flush chain inet gantry user-published")

        await host.service.close()
        assert host.ask(host.outside, HOST6, 8080) == "172.17.0.1", "without an engine"
        host.service = host.new_service()
        await host.service.restore(frozenset({request.container_id}))
        assert host.ask(host.outside, HOST6, 8080) == "172.17.0.1"
        assert "8080" in nft("list set inet gantry relayed")
        await host.service.close_sandbox(request.container_id)
        assert host.ask(host.outside, HOST6, 8080) == ""
        assert "8080" not in nft("list set inet gantry relayed")

    on_private_host(scenario)


def test_udp_of_containers_without_ipv6_is_published_by_it(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        wire_ipv6(host)
        await host.up(host.request(1, ports={"53/udp": "5353", "54/udp": "0.0.0.0:5454"}))
        server = host.within(1, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("", 53))
        server.settimeout(3)
        await host.service.nameserver.statistics()

        def client(place: Any) -> socket.socket:
            made: socket.socket = host.within(place, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            made.settimeout(3)
            return made

        clients = [(client(host.outside), HOST6), (client(host.outside), HOST6), (client(None), "::1")]
        for number, (sock, address) in enumerate(clients):
            sock.sendto(b"ask %d" % number, (address, 5353))
            data, peer = server.recvfrom(100)
            assert (data, peer[0]) == (b"ask %d" % number, "172.17.0.1")
            server.sendto(b"answer %d" % number, peer)
            data, answering = sock.recvfrom(100)
            assert (data, answering[:2]) == (b"answer %d" % number, (address, 5353)), "from where it was asked"
            sock.sendto(b"again", (address, 5353))
            assert server.recvfrom(100)[1] == peer, "one conversation for one client"
        large = bytes(1400)
        clients[0][0].sendto(large, (HOST6, 5353))
        assert server.recvfrom(2000)[0] == large
        clients[0][0].sendto(b"x", (HOST6, 5454))
        with pytest.raises(ConnectionRefusedError):
            refused = client(host.outside)
            refused.connect((HOST6, 5454))
            refused.send(b"x")
            refused.recv(10)
        await host.service.close_sandbox(host.request(1).container_id)
        host.within(None, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)).bind(("::", 5353))
        for sock, _ in clients:
            sock.close()

    on_private_host(scenario)


def test_an_ipv6_port_of_another_program_is_left_to_it(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        with socket.socket(socket.AF_INET6) as other:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            other.bind(("::", 8080))
            other.listen()
            request = host.request(1, ports={"80/tcp": "8080"})
            await host.up(request)
            found = host.service.settings(request)["Ports"]["80/tcp"]
            assert found == [{"HostIp": "0.0.0.0", "HostPort": "8080"}]

    on_private_host(scenario)


def test_containers_go_out_by_ipv6(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        wire_ipv6(host)
        await host.service.create(six("blue"))
        await host.up(host.request(1, mode="blue"))
        host.serve(host.outside, 9000, "::")
        assert host.ask(1, OUTSIDE6, 9000) == HOST6
        gateway = host.service.settings(host.request(1, mode="blue"))["Networks"]["blue"]["IPv6Gateway"]
        assert gateway == "fd06::1"

    on_private_host(scenario)


def test_a_network_of_ipv6_only(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        wire_ipv6(host)
        await host.service.create(six("blue", enable_ipv4=False))
        for number in (1, 2):
            await host.up(host.request(number, mode="blue", ports={"80/tcp": str(8080 + number)}))
            host.serve(number, 80, "::")
        assert host.ask(1, "fd06::3", 80) == "fd06::2"
        assert host.ask(host.outside, HOST6, 8081) == OUTSIDE6
        assert host.resolve(1, "c2", 28) == (0, ["fd06::3"])
        assert host.resolve(1, "c2") == (0, [])
        sandbox = host.service.sandbox(f"{1:064x}")
        assert (sandbox.endpoints[0].address, [p.host_ip for p in sandbox.endpoints[0].ports]) == ("", ["::"])

    on_private_host(scenario)


def test_flags_of_the_default_bridge(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        wire_ipv6(host)
        await host.service.close()
        flags = {"ipv6": True, "fixed_cidr_v6": "fd66::/64", "icc": False, "host_binding": "127.0.0.1"}
        host.service = host.new_service(**flags, bip="10.66.0.1/24", fixed_cidr="10.66.0.128/25")
        await host.service.restore(frozenset())
        for number in (1, 2):
            await host.up(host.request(number, ports={"80/tcp": str(8080 + number)}))
            host.serve(number, 80, "::")
        settings = host.service.settings(host.request(1))
        assert (settings["IPAddress"], settings["GlobalIPv6Address"]) == ("10.66.0.128", "fd66::2")
        assert host.ask(1, "10.66.0.129", 80, 0.4) == host.ask(1, "fd66::3", 80, 0.4) == ""
        assert host.ask(None, "127.0.0.1", 8081) != ""
        assert host.ask(host.outside, host.host_address, 8081, 0.4) == ""
        host.serve(host.outside, 9000, "::")
        assert host.ask(1, OUTSIDE6, 9000) == HOST6

    on_private_host(scenario)


def test_ipv4_networks_have_no_ipv6(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(1))
        for name, place in (("gantry0", None), ("eth0", 1)):
            text = host.within(place, lambda n=name: open(f"/proc/sys/net/ipv6/conf/{n}/disable_ipv6").read())  # noqa: SIM115  # closed with the lambda
            assert text.strip() == "1", name

    on_private_host(scenario)


def test_networks_are_apart_by_ipv6(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.service.create(six("blue"))
        red = CreateIpam(config=[IpamConfig(subnet="fd07::/64")])
        await host.service.create(six("red", ipam=red))
        for number, name in ((1, "blue"), (2, "red")):
            await host.up(host.request(number, mode=name))
            host.serve(number, 80, "::")
        assert host.ask(1, "fd07::2", 80, 0.4) == ""
        assert host.ask(2, "fd06::2", 80, 0.4) == ""

    on_private_host(scenario)


def test_a_host_that_forwards_still_takes_router_advertisements(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        path = "/proc/sys/net/ipv6/conf/wire/accept_ra"
        with open(path, "w", encoding="ascii") as file:
            file.write("1")
        await host.service.create(six("blue"))
        with open(path, encoding="ascii") as file:
            assert file.read().strip() == "2"

    on_private_host(scenario)


MODE4, MODE6 = (f"com.docker.network.bridge.gateway_mode_ipv{v}" for v in (4, 6))


def test_routed_containers_are_reached_by_their_own_address(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        wire_ipv6(host)
        await host.service.create(six("open", options={MODE6: "routed"}))
        request = host.request(1, mode="open", ports={"80/tcp": "8080"})
        await host.up(request)
        host.serve(1, 80, "::")
        host.serve(1, 81, "::")
        assert host.ask(host.outside, "fd06::2", 80) == OUTSIDE6
        assert host.ask(host.outside, "fd06::2", 81, 0.5) == "", "only what is published"
        assert host.ask(host.outside, HOST6, 8080, 0.5) == "", "not translated"
        assert host.ask(host.outside, host.host_address, 8080) == f"::ffff:{host.outside_address}", "IPv4 still is"
        assert {"HostIp": "::", "HostPort": ""} in host.service.settings(request)["Ports"]["80/tcp"]
        host.serve(host.outside, 9000, "::")
        assert host.ask(1, OUTSIDE6, 9000) == "fd06::2", "goes out under its own address"
        await host.service.close_sandbox(request.container_id)

    on_private_host(scenario)


def test_unprotected_and_isolated_gateways(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.service.create(CreateRequest(name="bare", options={MODE4: "nat-unprotected"}))
        await host.up(host.request(1, mode="bare"))
        host.serve(1, 81)
        assert host.ask(host.outside, "172.18.0.2", 81) == host.outside_address
        made = await host.service.create(CreateRequest(name="cell", internal=True, options={MODE4: "isolated"}))
        await host.up(host.request(2, mode="cell"))
        await host.up(host.request(3, mode="cell"))
        host.serve(2, 80)
        host.serve(None, 7000)
        assert host.ask(3, host.service.sandbox(f"{2:064x}").endpoints[0].address, 80) != ""
        assert host.ask(3, made.pools[0].gateway, 7000, 0.5) == "", "the host has no address on it"

    on_private_host(scenario)


def nft(*words: str) -> str:
    done = subprocess.run(["nft", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_administrators_rules_hold_and_stay(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        host.serve(host.outside, 9000)
        await host.up(host.request(1, ports={"80/tcp": "8080"}))
        host.serve(1, 80)
        assert host.ask(host.outside, host.host_address, 8080) != ""
        # In the words of a host's own firewall: the address and the port that the client sees.
        nft("add rule inet gantry user-published tcp dport 8080 ip saddr 192.0.2.0/24 drop")
        nft("add rule inet gantry user-forward ip daddr 192.0.2.2 tcp dport 9000 drop")

        def holds() -> bool:
            answers = host.ask(host.outside, host.host_address, 8080, 0.4), host.ask(1, host.outside_address, 9000, 0.4)
            return answers == ("", "")

        assert holds()
        await host.service.create(CreateRequest(name="blue"))
        assert holds(), "after a change of networks"
        await host.service.close()
        host.service = host.new_service()
        await host.service.restore(frozenset({f"{1:064x}"}))
        assert holds(), "after a restart of the engine"
        await host.service.remove_host_state()
        text = nft("list", "table", "inet", "gantry")
        assert "dport 8080" in text, "rules of the administrator were removed"
        assert "dnat" not in text
        nft("delete", "table", "inet", "gantry")
        await host.service.restore(frozenset())

    on_private_host(scenario)


def test_tables_of_others_are_left_alone(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        nft("add table inet mine; add chain inet mine input { type filter hook input priority 0 ; policy accept ; }")
        nft("add rule inet mine input tcp dport 1 drop")
        before = nft("list", "table", "inet", "mine")
        await host.up(host.request(1, ports={"80/tcp": "8080"}))
        await host.service.create(CreateRequest(name="blue"))
        await host.service.remove("blue")
        await host.service.remove_host_state()
        assert nft("list", "table", "inet", "mine") == before
        nft("delete table inet mine")
        await host.service.restore(frozenset())

    on_private_host(scenario)


def test_a_hundred_sandboxes_at_once_get_a_hundred_addresses(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.service.create(six("blue"))
        requests = [host.request(n, mode="blue", ports={"80/tcp": ""}) for n in range(1, 101)]
        await asyncio.gather(*(host.up(request) for request in requests))
        endpoints = [host.service.sandbox(r.container_id).endpoints[0] for r in requests]
        assert len({e.address for e in endpoints}) == len({e.address6 for e in endpoints}) == 100
        assert len({e.ports[0].host_port for e in endpoints}) == 100
        for number in (1, 50, 100):
            host.serve(number, 80)
            port = endpoints[number - 1].ports[0].host_port
            assert host.ask(host.outside, host.host_address, port) == host.outside_address
            assert host.resolve(number, f"c{101 - number}") == (0, [endpoints[100 - number].address])
        for request in requests[:50]:
            await host.service.close_sandbox(request.container_id)
        assert len(os.listdir(f"{host.root}/netns")) == 50
        await asyncio.gather(*(host.service.close_sandbox(r.container_id) for r in requests[50:]))

    on_private_host(scenario)
