"""UDP clients that keep sending from one port while containers come and go behind a published one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from engine.network.creation import CreateRequest

pytestmark = pytest.mark.root

Run = Callable[[Any], None]

SYSLOG = {"514/udp": "5514"}
ATTEMPTS = 40


class Client:
    """Sends from one port for as long as it lives, as syslog and statsd clients do."""

    def __init__(self, host: Any, place: str | None, target: str) -> None:
        self._socket = host.within(place, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.bind(("", 40514))
        self._socket.setblocking(False)
        self._target = target

    def send(self, port: int = 5514) -> None:
        try:
            self._socket.sendto(b"line", (self._target, port))
        except ConnectionRefusedError:  # the answer to an earlier datagram
            self._socket.sendto(b"line", (self._target, port))

    def close(self) -> None:
        self._socket.close()

    def reaches(self, received: Callable[[float], bool]) -> bool:
        """Whether a line arrives when it keeps sending: a bridge drops what comes before its new port is ready."""
        for _ in range(ATTEMPTS):
            self.send()
            if received(0.5):
                return True
        return False


@pytest.mark.parametrize("inside", [False, True], ids=["another machine", "this host"])
def test_a_client_that_was_there_first_is_served(on_private_host: Run, inside: bool) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(1))
        client = Client(host, None if inside else host.outside, "127.0.0.1" if inside else host.host_address)
        client.send()
        await host.up(host.request(2, ports=SYSLOG))
        received = host.datagrams(2, 514)
        assert client.reaches(received), (
            "its first datagram came before the port was published, and the kernel remembers"
        )
        client.close()

    on_private_host(scenario)


def test_a_client_follows_a_container_to_its_next_address(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        client = Client(host, host.outside, host.host_address)
        await host.up(host.request(2, ports=SYSLOG))
        received = host.datagrams(2, 514)
        assert client.reaches(received)
        await host.service.close_sandbox(host.request(2).container_id)
        await host.service.reaper.drain()
        # Somebody else gets the address, and listens on the same port without publishing it.
        await host.up(host.request(3))
        assert host.service.sandbox(f"{3:064x}").endpoints[0].address == "172.17.0.2"
        stranger = host.datagrams(3, 514)
        client.send()
        assert not stranger(0.5), "led to another container by what the kernel remembers"
        await host.up(host.request(2, ports=SYSLOG))
        received = host.datagrams(2, 514)
        assert client.reaches(received)
        client.close()

    on_private_host(scenario)


def test_a_container_that_died_with_the_daemon_has_no_clients(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        client = Client(host, host.outside, host.host_address)
        await host.up(host.request(2, ports=SYSLOG))
        received = host.datagrams(2, 514)
        assert client.reaches(received)
        await host.service.close()
        host.service = host.new_service()
        await host.service.restore(frozenset())
        await host.up(host.request(3))
        assert host.service.sandbox(f"{3:064x}").endpoints[0].address == "172.17.0.2"
        stranger = host.datagrams(3, 514)
        client.send()
        assert not stranger(0.5)
        client.close()

    on_private_host(scenario)


def test_other_connections_are_left_alone(on_private_host: Run) -> None:
    """A container asks a server of the world at the port that is published here meanwhile."""

    async def scenario(host: Any) -> None:
        await host.service.create(CreateRequest(name="blue"))
        await host.up(host.request(1, mode="blue"))
        server = host.within(host.outside, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("", 5514))
        server.settimeout(3)
        client = host.within(1, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        client.settimeout(3)
        client.sendto(b"ask", (host.outside_address, 5514))
        _, peer = server.recvfrom(100)
        await host.up(host.request(2, ports=SYSLOG))
        server.sendto(b"answer", peer)
        assert client.recv(100) == b"answer", "the translation of its question was forgotten"
        for sock in (server, client):
            sock.close()

    on_private_host(scenario)
