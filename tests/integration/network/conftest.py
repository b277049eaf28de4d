"""A private host for network tests: own network and mount namespaces, an "outside" machine on a wire, nothing real.

Each scenario runs in a forked child that leaves the test's namespaces first; its sockets in containers and outside are
made on threads that entered those namespaces.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, TypeVar

import dnslib
import pytest

from engine.events import EventBus
from engine.interfaces import PortBinding, SandboxRequest
from engine.network import nft, rtnl
from engine.network.model import NetworkOptions
from engine.network.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Netlink, attributes
from engine.network.netns import create_pin, enter, on_own_thread, remove_pin
from engine.network.service import NetworkService
from engine.store import Store

T = TypeVar("T")

CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
OUTSIDE, HOST = "192.0.2.2", "192.0.2.1"
ROOT = "/run/gantry-test"


def request_for(
    number: int, *, mode: str = "bridge", ports: dict[str, str] | None = None, **more: Any
) -> SandboxRequest:
    """Container ``number``; ``ports`` maps ``80/tcp`` to ``[ip:]host port``."""
    bindings: dict[str, tuple[PortBinding, ...]] = {}
    for key, text in (ports or {}).items():
        host_ip, _, host_port = text.rpartition(":")
        bindings[key] = (PortBinding(host_ip=host_ip, host_port=host_port),)
    more.setdefault("exposed_ports", tuple(bindings))
    return SandboxRequest(
        container_id=f"{number:064x}",
        name=f"c{number}",
        hostname=f"h{number}",
        mode=mode,
        port_bindings=bindings,
        **more,
    )


def _checksum(head: bytes) -> bytes:
    total = sum(int.from_bytes(head[i : i + 2], "big") for i in range(0, len(head), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def send_frame(source: str, target: str, target_mac: bytes, port: int) -> None:
    """Put a UDP datagram of port 7001 on the wire of this thread's eth0, past all routing of our own."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind(("eth0", 0x0800))
    udp = (7001).to_bytes(2, "big") + port.to_bytes(2, "big") + (13).to_bytes(2, "big") + b"\0\0" + b"hello"
    head = bytearray(b"\x45\0\0\0\0\0\0\0\x40\x11\0\0" + socket.inet_aton(source) + socket.inet_aton(target))
    head[2:4] = (20 + len(udp)).to_bytes(2, "big")
    head[10:12] = _checksum(bytes(head))
    raw.send(target_mac + raw.getsockname()[4] + b"\x08\0" + head + udp)
    raw.close()


def ask_dns(server: str, name: str, kind: int, *, stream: bool = False) -> tuple[int, list[str]]:
    """A question with dnslib's codec, which is not ours."""
    question = dnslib.DNSRecord(q=dnslib.DNSQuestion(name, kind))
    question.header.rd = 1
    try:
        answer = dnslib.DNSRecord.parse(question.send(server, 53, tcp=stream, timeout=6))
    except TimeoutError:
        return -1, []
    assert answer.header.id == question.header.id
    return answer.header.rcode, [str(record.rdata) for record in answer.rr]


class PrivateHost:
    """What a scenario is given: ``service``, and traffic between the host, its containers and the outside."""

    request = staticmethod(request_for)
    outside_address, host_address = OUTSIDE, HOST

    def __init__(self) -> None:
        self.root = ROOT
        self.outside = f"{ROOT}/outside"
        self.bound_resolv_conf = False
        self.store = Store(f"{ROOT}/engine.db")
        self.bus = EventBus()
        self.service = self.new_service()

    def new_service(self, **options: Any) -> NetworkService:
        """A service over the same store, as after a restart of the daemon."""
        return NetworkService(self.store, self.bus, ROOT, NetworkOptions(**options))

    def pin(self, number: int) -> str:
        return f"{ROOT}/netns/{number:064x}"

    def wire_outside(self) -> None:
        """Another machine at 192.0.2.2 with a route to everywhere through the host (192.0.2.1)."""
        inside = on_own_thread(lambda: create_pin(self.outside))
        host = Netlink(NETLINK_ROUTE)
        descriptor = os.open(self.outside, os.O_RDONLY)
        host.request(rtnl.new_veth("wire", 0, 1500, "eth0", b"\2\0\0\0\0\1", descriptor))
        os.close(descriptor)
        near, far = rtnl.find_link(host, "wire"), rtnl.find_link(inside, "eth0")
        assert near is not None and far is not None
        host.request(rtnl.new_address(near.index, IPv4Interface(f"{HOST}/24")), rtnl.set_up(rtnl.LOOPBACK_INDEX))
        inside.request(rtnl.new_address(far.index, IPv4Interface(f"{OUTSIDE}/24")), rtnl.set_up(far.index))
        inside.request(rtnl.default_route(IPv4Address(HOST), far.index))
        host.close()
        inside.close()

    def bind_mount(self, source: str, target: str) -> None:
        """Show ``source`` at ``target``, in this private host only."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(source.encode(), os.path.realpath(target).encode(), None, ctypes.c_ulong(0x1000), None) != 0:
            raise OSError(ctypes.get_errno(), f"mount {source} on {target}")
        self.bound_resolv_conf = True

    def unwire_outside(self) -> None:
        host = Netlink(NETLINK_ROUTE)
        host.request(rtnl.delete_link("wire"))
        host.close()
        remove_pin(self.outside)

    async def up(self, request: SandboxRequest) -> Any:
        """What the engine does at start of a container."""
        return await self.up_with(self.service, request)

    @staticmethod
    async def up_with(service: NetworkService, request: SandboxRequest) -> Any:
        """``up`` by another service than this host's."""
        service.validate(request)
        await service.open_sandbox(request)
        return await service.connect(request)

    def within(self, place: str | int | None, work: Callable[[], T]) -> T:
        """Run ``work`` on a thread inside container number ``place``, a pin's path, or the host (None)."""

        def body() -> T:
            if place is not None:
                path = self.pin(place) if isinstance(place, int) else place
                descriptor = os.open(path, os.O_RDONLY)
                enter(descriptor)
                os.close(descriptor)
            return work()

        return on_own_thread(body)

    def serve(self, place: str | int | None, port: int, address: str = "") -> Callable[[], None]:
        """A TCP server that tells each client the address it sees it at; returns how to stop it."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = self.within(
            place, lambda: socket.create_server((address, port), family=family, dualstack_ipv6=address == "::")
        )

        def loop() -> None:
            while True:
                try:
                    connection, peer = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(peer[0].encode())

        threading.Thread(target=loop, daemon=True).start()

        def stop() -> None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

        return stop

    def ask(self, place: str | int | None, address: str, port: int, seconds: float = 3.0) -> str:
        """The answer of such a server; "" when it cannot be reached."""

        def work() -> str:
            try:
                with socket.create_connection((address, port), seconds) as connection:
                    return connection.recv(100).decode()
            except OSError:
                return ""

        return self.within(place, work)

    def resolve(
        self, place: str | int, name: str, kind: int = 1, *, server: str = "127.0.0.11", stream: bool = False
    ) -> tuple[int, list[str]]:
        """(response code, data of the records) of a question asked at ``place``; code −1 when nobody answers."""
        return self.within(place, lambda: ask_dns(server, name, kind, stream=stream))

    def datagrams(self, place: int | None, port: int, address: str = "") -> Callable[..., bool]:
        """A UDP server; the answer says whether a datagram comes within some seconds: few for what must not come."""
        server = self.within(place, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind((address, port))

        def received(seconds: float = 20) -> bool:
            server.settimeout(seconds)
            try:
                return bool(server.recv(100))
            except TimeoutError:
                return False

        return received

    def send_frame(self, place: str | int, target: str, link: str, port: int) -> None:
        """From ``place``, a UDP frame for address ``target`` straight to the host's interface ``link``."""
        netlink = Netlink(NETLINK_ROUTE)
        found = rtnl.find_link(netlink, link)
        netlink.close()
        assert found is not None
        source = OUTSIDE if place == self.outside else f"172.17.0.{place}"
        self.within(place, lambda: send_frame(source, target, found.address, port))

    def route_to(self, number: int, gateway: str) -> None:
        """Give a container a default route that the engine did not."""

        def work() -> None:
            netlink = Netlink(NETLINK_ROUTE)
            link = rtnl.find_link(netlink, "eth0")
            assert link is not None
            netlink.request(rtnl.default_route(IPv4Address(gateway), link.index))
            netlink.close()

        self.within(number, work)

    def link_names(self) -> set[str]:
        netlink = Netlink(NETLINK_ROUTE)
        names = {link.name for link in rtnl.links(netlink)}
        netlink.close()
        return names

    def veths_left(self, seconds: float) -> list[str]:
        """Host ends of containers that are still there after at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while (
            left := [name for name in self.link_names() if name.startswith("gveth")]
        ) and time.monotonic() < deadline:
            time.sleep(0.01)
        return left

    def reopen_store(self) -> None:
        """A database connection does not survive fork."""
        self.store = Store(f"{ROOT}/engine.db")

    def tables(self) -> list[str]:
        """Names of every nftables table of this namespace."""
        netlink = Netlink(NETLINK_NETFILTER)
        found = [
            dict(attributes(body[4:]))[1]
            for _, body in netlink.dump(nft.SUBSYSTEM << 8 | nft.GET_TABLE, nft.query_all())
        ]
        netlink.close()
        return [name.rstrip(b"\0").decode() for name in found]

    def published(self) -> int:
        """How many ports the firewall's map holds."""
        netlink = Netlink(NETLINK_NETFILTER)
        query = nft.query_elements("gantry", "ports")
        answers = netlink.dump(nft.SUBSYSTEM << 8 | nft.GET_ELEMENT, query)
        netlink.close()
        return sum(len(list(attributes(dict(attributes(body[4:])).get(3, b"")))) for _, body in answers)

    def mounts(self) -> list[str]:
        """Mount points below our run directory."""
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            return [p for p in (line.split()[4] for line in file) if p.startswith(f"{ROOT}/")]


Scenario = Callable[[Any], Awaitable[None]]


def _isolate() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for arguments in ((b"none", b"/", None, MS_REC | MS_PRIVATE, None), (b"tmpfs", b"/run", b"tmpfs", 0, None)):
        if libc.mount(*arguments[:3], ctypes.c_ulong(arguments[3]), arguments[4]) != 0:
            raise OSError(ctypes.get_errno(), "mount")
    os.mkdir(ROOT)


async def _run(scenario: Scenario) -> None:
    host = PrivateHost()
    host.wire_outside()
    await host.service.restore(frozenset())
    try:
        await scenario(host)
    except BaseException:
        await host.service.nameserver.stop()  # it would outlive the scenario, as it is meant to
        raise
    await host.service.remove_host_state()
    host.unwire_outside()
    assert host.link_names() == {"lo"}, "interfaces are left"
    assert host.tables() == [], "firewall tables are left"
    assert host.mounts() == [], "mounts are left"
    assert os.listdir(f"{ROOT}/netns") == [], "pins are left"


@pytest.fixture
def on_private_host() -> Callable[[Scenario], None]:
    """Runs a scenario on a fresh private host and asserts that nothing is left of it afterwards."""

    def run(scenario: Scenario) -> None:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.alarm(60)
                _isolate()
                asyncio.run(_run(scenario))
                status = 0
            except BaseException:
                os.write(write, traceback.format_exc().encode()[-60000:])
            finally:
                os._exit(status)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            text = pipe.read().decode(errors="replace")
        _, status = os.waitpid(pid, 0)
        if status != 0:
            pytest.fail(f"scenario failed with wait status {status}:\n{text}", pytrace=False)

    return run
