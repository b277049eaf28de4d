"""Packets through the default bridge and published ports, between a host, its containers and another machine."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.root

Run = Callable[[Any], None]


def test_published_port_shows_the_clients_own_address(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"80/tcp": "8080"}))
        host.serve(2, 80)
        assert host.ask(host.outside, host.host_address, 8080) == host.outside_address

    on_private_host(scenario)


def test_published_port_from_the_host_itself(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"80/tcp": "8080"}))
        host.serve(2, 80)
        assert host.ask(None, "127.0.0.1", 8080) == "172.17.0.1"
        assert host.ask(None, host.host_address, 8080) == host.host_address
        assert host.ask(None, "172.17.0.2", 80) == "172.17.0.1"

    on_private_host(scenario)


def test_hairpin_and_neighbour_reach_a_published_port(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"80/tcp": "8080"}))
        await host.up(host.request(3))
        host.serve(2, 80)
        for number in (2, 3):
            assert host.ask(number, host.host_address, 8080) == "172.17.0.1", f"container {number}"
            assert host.ask(number, "172.17.0.1", 8080) == "172.17.0.1", f"container {number}"
        assert host.ask(3, "172.17.0.2", 80) == "172.17.0.3", "neighbours talk without translation"

    on_private_host(scenario)


def test_hairpin_without_bridge_netfilter(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        switch = "/proc/sys/net/bridge/bridge-nf-call-iptables"
        if not os.path.exists(switch):
            return  # then this is what the test above has seen
        with open(switch, "w", encoding="ascii") as file:
            file.write("0")
        await host.up(host.request(2, ports={"80/tcp": "8080"}))
        await host.up(host.request(3))
        host.serve(2, 80)
        for number in (2, 3):
            assert host.ask(number, host.host_address, 8080) == "172.17.0.1", f"container {number}"

    on_private_host(scenario)


def test_containers_go_out_under_the_hosts_address(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2))
        host.serve(host.outside, 9000)
        assert host.ask(2, host.outside_address, 9000) == host.host_address

    on_private_host(scenario)


def test_unpublished_port_is_closed_to_the_outside(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"81/tcp": "8081"}))
        host.serve(2, 80)
        assert host.ask(host.outside, "172.17.0.2", 80, 0.5) == ""
        host.serve(2, 81)
        assert host.ask(host.outside, "172.17.0.2", 81, 0.5) == "", (
            "published on the host, not on the container's address"
        )
        assert host.ask(None, "172.17.0.2", 80) == "172.17.0.1", "the server does run"

    on_private_host(scenario)


def test_port_published_on_loopback_stays_on_loopback(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"80/tcp": "127.0.0.1:8080"}))
        host.serve(2, 80)
        assert host.ask(None, "127.0.0.1", 8080) == "172.17.0.1"
        assert host.ask(None, host.host_address, 8080, 0.5) == ""
        assert host.ask(host.outside, host.host_address, 8080, 0.5) == ""

    on_private_host(scenario)


def test_frames_for_loopback_are_not_translated(on_private_host: Run) -> None:
    """Translation comes before the kernel's martian check: a neighbour could aim a frame at 127.0.0.1."""

    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"53/udp": "127.0.0.1:5353", "54/udp": "5354"}))
        closed, opened = host.datagrams(2, 53), host.datagrams(2, 54)
        host.send_frame(host.outside, host.host_address, "wire", 5354)
        assert opened(), "the frame is well formed"
        host.send_frame(host.outside, "127.0.0.1", "wire", 5353)
        host.send_frame(host.outside, "127.0.0.1", "wire", 5354)
        assert not closed(0.5)
        assert not opened(0.5)

    on_private_host(scenario)


def test_container_cannot_reach_the_hosts_loopback(on_private_host: Run) -> None:
    """route_localnet on the bridge must not let containers in (CVE-2020-8558)."""

    async def scenario(host: Any) -> None:
        await host.up(host.request(2))
        everywhere, loopback = host.datagrams(None, 7000), host.datagrams(None, 7002, "127.0.0.1")
        host.send_frame(2, "172.17.0.1", "gantry0", 7000)
        assert everywhere(), "the frame is well formed"
        host.send_frame(2, "127.0.0.1", "gantry0", 7002)
        assert not loopback(0.5)

    on_private_host(scenario)


def test_localhost_by_ipv6(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"80/tcp": "8080", "81/tcp": "127.0.0.1:8081"}))
        stop = host.serve(2, 80)
        await host.service.nameserver.statistics()  # a question behind the one that opened it
        assert host.ask(None, "::1", 8080) == "172.17.0.1"
        assert host.ask(None, "::1", 8081) == "", "published on 127.0.0.1 alone"
        stop()
        assert host.ask(None, "::1", 8080) == "", "nobody serves"
        _echo_large(host)
        await host.service.close_sandbox(host.request(2).container_id)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("::1", 8080), 2)

    on_private_host(scenario)


def _echo_large(host: Any) -> None:
    """Five megabytes there and back, with a half-close: more than all buffers on the way hold."""
    data = os.urandom(5 << 20)
    listener = host.within(2, lambda: socket.create_server(("", 80)))

    def echo() -> None:
        connection, _ = listener.accept()
        with connection:
            got = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            connection.sendall(got)

    server = threading.Thread(target=echo, daemon=True)
    server.start()
    with socket.create_connection(("::1", 8080), 20) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: client.recv(1 << 16), b"")) == data
    server.join(5)


def test_udp_port(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"53/udp": "5353"}))
        server = host.within(2, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("", 53))
        server.settimeout(20)
        client = host.within(host.outside, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        client.settimeout(20)
        client.sendto(b"ask", (host.host_address, 5353))
        data, peer = server.recvfrom(100)
        assert (data, peer[0]) == (b"ask", host.outside_address)
        server.sendto(b"answer", peer)
        assert client.recvfrom(100) == (b"answer", (host.host_address, 5353))

    on_private_host(scenario)


def test_range_of_ports_in_one_transaction(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={f"{n}/tcp": str(20000 + n) for n in range(1, 301)}))
        assert host.published() == 300
        host.serve(2, 300)
        assert host.ask(host.outside, host.host_address, 20300) == host.outside_address
        await host.service.close_sandbox(host.request(2).container_id)
        assert host.published() == 0

    on_private_host(scenario)


def _crc32c(data: bytes) -> int:
    """SCTP's checksum (RFC 9260, appendix A)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _sctp_init(source: int, target: int) -> bytes:
    """The first packet of an association."""
    chunk = b"\1\0\0\x14" + b"\0\0\0\7" + b"\0\1\0\0" + b"\0\1\0\1" + b"\0\0\0\1"
    head = source.to_bytes(2, "big") + target.to_bytes(2, "big") + bytes(4)
    return head + _crc32c(head + bytes(4) + chunk).to_bytes(4, "little") + chunk


ATTEMPTS = 40


def test_sctp_port(on_private_host: Run) -> None:
    """With raw sockets: the packets are the same whether or not the kernel has SCTP sockets."""

    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"3868/sctp": "4868"}))
        receiver, sender = (
            host.within(place, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 132))
            for place in (2, host.outside)
        )
        receiver.settimeout(0.5)
        for _ in range(ATTEMPTS):  # SCTP sends again: a bridge drops what comes before its new port is ready
            sender.sendto(_sctp_init(9999, 4868), (host.host_address, 0))
            with contextlib.suppress(TimeoutError):
                packet, peer = receiver.recvfrom(2000)
                break
        else:
            pytest.fail("nothing arrives at the published port")
        assert peer[0] == host.outside_address
        assert packet[20:] == _sctp_init(9999, 3868), "port and checksum are the container's"
        sender.sendto(_sctp_init(9998, 4869), (host.host_address, 0))
        with contextlib.suppress(TimeoutError):
            while True:  # at most the first one again
                assert receiver.recv(2000)[20:] == packet[20:], "a port that is not published"
        receiver.close()
        sender.close()

    on_private_host(scenario)
