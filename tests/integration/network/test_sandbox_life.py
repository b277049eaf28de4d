"""Sandboxes through daemon restarts, kills, conflicts and changes of networks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine.interfaces import NetworkTarget
from engine.network import attach
from engine.network.creation import CreateIpam, CreateRequest
from engine.network.model import IpamConfig
from oci.errors import FailedPrecondition, GantryError, Internal, PermissionDenied

pytestmark = pytest.mark.root

Run = Callable[[Any], None]


def test_modes_without_a_bridge(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        service = host.service
        none, shared, sharer = (
            host.request(1, mode="none"),
            host.request(2),
            host.request(3, mode=f"container:{2:064x}"),
        )
        assert await service.open_sandbox(host.request(4, mode="host")) is None
        files = await service.connect(host.request(4, mode="host"))
        with open("/etc/hosts", encoding="utf-8") as file:
            assert files.hosts == file.read(), "a host-mode container sees the host's own names"
        with pytest.raises(FailedPrecondition, match="cannot join network of a non running container"):
            await service.open_sandbox(sharer)
        await host.up(none)
        names = host.within(1, lambda: [name for _, name in socket.if_nameindex()])
        assert names == ["lo"]
        given = await host.up(shared)
        assert await service.open_sandbox(sharer) == host.pin(2)
        assert (await service.connect(sharer)) == given
        assert service.settings(sharer)["Networks"] == {}
        assert list(service.settings(none)["Networks"]) == ["none"]
        assert list(service.settings(host.request(4, mode="host"))["Networks"]) == ["host"]

    on_private_host(scenario)


def test_port_conflicts_in_dockers_words(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"80/tcp": "8080"}))
        with pytest.raises(Internal) as caught:
            await host.up(host.request(3, ports={"80/tcp": "127.0.0.1:8080"}))
        message = caught.value.message
        assert message.startswith("driver failed programming external connectivity on endpoint c3 (")
        assert message.endswith("): Bind for 127.0.0.1:8080 failed: port is already allocated")
        with socket.create_server(("", 9090)), pytest.raises(Internal) as caught:
            await host.up(host.request(4, ports={"80/tcp": "9090"}))
        assert caught.value.message.endswith(
            "failed to bind host port for 0.0.0.0:9090:172.17.0.3:80/tcp: address already in use"
        )
        await host.up(host.request(5, ports={"80/udp": "8080"}))
        await host.up(host.request(6))
        assert host.service.settings(host.request(6))["IPAddress"] == "172.17.0.4", "failed starts gave theirs back"

    on_private_host(scenario)


def test_a_held_port_is_refused_to_other_programs(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"80/tcp": "8080", "53/udp": "5353"}))
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", 8080)).close()
        with pytest.raises(OSError, match="in use"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("", 5353))
        await host.service.close_sandbox(host.request(2).container_id)
        socket.create_server(("127.0.0.1", 8080)).close()

    on_private_host(scenario)


def test_a_port_in_time_wait_can_be_published(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        server = socket.create_server(("127.0.0.1", 8080))
        with server, socket.create_connection(("127.0.0.1", 8080)) as client:
            accepted, _ = server.accept()
            accepted.close()
            client.recv(1)
        await host.up(host.request(2, ports={"80/tcp": "8080"}))

    on_private_host(scenario)


def test_traffic_needs_no_daemon_and_restart_takes_over(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"80/tcp": "8080"}))
        await host.up(host.request(3, ports={"80/tcp": "8081"}))
        await host.up(host.request(4, mode="none"))
        host.serve(2, 80)
        await host.service.close()
        assert host.ask(host.outside, host.host_address, 8080) == host.outside_address

        host.service = host.new_service()
        await host.service.restore(frozenset({f"{2:064x}"}))
        assert host.ask(host.outside, host.host_address, 8080) == host.outside_address
        assert host.published() == 1
        assert host.service.settings(host.request(2))["IPAddress"] == "172.17.0.2"
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("", 8080)).close()
        socket.create_server(("", 8081)).close()
        assert sorted(os.listdir(f"{host.root}/netns")) == [f"{2:064x}"]
        assert len([name for name in host.link_names() if name.startswith("gveth")]) == 1
        await host.up(host.request(5))
        assert host.service.settings(host.request(5))["IPAddress"] == "172.17.0.3"

    on_private_host(scenario)


def test_kill_at_any_instant_leaves_nothing_after_restore(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.service.close()
        chance = random.Random(7)
        caught_at_work = 0
        for _ in range(12):
            _churn_and_kill(host, chance.uniform(0.02, 0.12))
            caught_at_work += len(host.link_names() - {"lo", "wire", "gantry0"}) + len(list(host.store.all("endpoint")))
            host.service = host.new_service()
            await host.service.restore(frozenset())
            assert host.veths_left(2.0) == []
            assert os.listdir(f"{host.root}/netns") == []
            assert host.published() == 0
            assert list(host.store.all("endpoint")) == []
            await host.service.close()
        assert caught_at_work > 12, "the kills hit an idle daemon"
        host.service = host.new_service()
        await host.service.start()

    on_private_host(scenario)


def _churn_and_kill(host: Any, seconds: float) -> None:
    """A second daemon that opens and closes sandboxes until it is killed."""
    _in_another_daemon(host, _churn, seconds)


def _in_another_daemon(host: Any, work: Callable[[Any], Awaitable[None]], seconds: float) -> None:
    """Run ``work`` in a process that is killed ``seconds`` after it has begun its work in earnest."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            host.reopen_store()
            host.started = lambda: os.write(write, b"1")
            asyncio.new_event_loop().run_until_complete(work(host))
        os._exit(0)
    os.close(write)
    os.read(read, 1)
    os.close(read)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


async def _churn(host: Any) -> None:
    service = host.new_service()
    await service.restore(frozenset())
    host.started()
    for number in range(1000):
        await service.open_sandbox(host.request(number, ports={"80/tcp": ""}))
        await service.connect(host.request(number, ports={"80/tcp": ""}))
        if number % 3:
            await service.close_sandbox(f"{number:064x}")


def test_a_kill_during_connect_and_disconnect_is_finished_or_undone(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.service.create(CreateRequest(name="blue", enable_ipv6=True))
        await host.service.create(CreateRequest(name="red"))
        chance = random.Random(11)
        undone = kills = 0
        while kills < 12 or (not undone and kills < 60):  # on a busy machine most kills meet a daemon that waits
            kills += 1
            await host.service.close()
            _in_another_daemon(host, _connect_churn, chance.uniform(0.15, 0.5))
            running = frozenset(
                set(os.listdir(f"{host.root}/netns")) & {name for name, _ in host.store.all("endpoint")}
            )
            before = len(_interfaces(host, running))
            host.service = host.new_service()
            await host.service.restore(running)
            await host.service.reaper.drain()
            undone += before != len(_interfaces(host, running))
            _agrees(host, running)
        assert undone, "the kills hit an idle daemon"
        for container_id in running:
            await host.service.close_sandbox(container_id)

    on_private_host(scenario)


def _interfaces(host: Any, running: frozenset[str]) -> set[tuple[int, str]]:
    numbers = [int(container_id, 16) for container_id in running]
    names = {n: host.within(n, lambda: [name for _, name in socket.if_nameindex() if name != "lo"]) for n in numbers}
    return {(number, name) for number, found in names.items() for name in found}


def _agrees(host: Any, running: frozenset[str]) -> None:
    """Kernel, firewall, names and records say the same."""
    sandboxes = [host.service.sandbox(container_id) for container_id in running]
    endpoints = [e for sandbox in sandboxes for e in sandbox.endpoints]
    addresses = [a for e in endpoints for a in e.addresses]
    assert len(set(addresses)) == len(addresses)
    assert {name for name in host.link_names() if name.startswith("gveth")} == {e.veth for e in endpoints}
    assert _interfaces(host, running) == {
        (int(s.request.container_id, 16), e.device) for s in sandboxes for e in s.endpoints
    }
    assert set(os.listdir(f"{host.root}/netns")) == running
    # A port takes an element for each IP version: "ports" alone are counted here.
    assert host.published() == sum(not p.host_ip.startswith("::") for e in endpoints for p in e.ports)
    for sandbox in sandboxes:
        for other in sandboxes:
            shared = {e.network_id for e in sandbox.endpoints} & {e.network_id for e in other.endpoints}
            known = [e for e in other.endpoints if e.network_id in shared and e.network != "bridge"]
            asks = any(e.network != "bridge" for e in sandbox.endpoints)
            if known and asks and other is not sandbox:
                code, found = host.resolve(int(sandbox.request.container_id, 16), other.request.name)
                assert (code, found[0] in {e.address for e in known}) == (0, True)


async def _connect_churn(host: Any) -> None:
    service = host.new_service()
    await service.restore(frozenset(os.listdir(f"{host.root}/netns")))
    host.started()
    requests = {f"c{n}": host.request(n, ports={"80/tcp": ""}) for n in range(1, 6)}

    class Directory:
        def network_target(self, reference: str) -> NetworkTarget:
            return NetworkTarget(request=requests[reference], running=True)

    service.containers = Directory()
    chance = random.Random()
    while True:
        name = chance.choice(list(requests))
        network = chance.choice(("blue", "red", "bridge"))
        action = chance.choice(("open", "connect", "connect", "disconnect", "close"))
        with contextlib.suppress(GantryError):
            if action == "open":
                await host.up_with(service, requests[name])
            elif action == "close" and chance.random() < 0.3:
                await service.close_sandbox(requests[name].container_id)
            elif action == "connect":
                await attach.connect(service, network, name, {"Aliases": ["app"]})
            else:
                await attach.disconnect(service, network, name, force=True)


def test_networks_of_the_user_are_apart(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        service = host.service
        blue = await service.create(CreateRequest(name="blue"))
        pool = IpamConfig(subnet="10.9.0.0/24", ip_range="10.9.0.128/25")
        inner = await service.create(CreateRequest(name="inner", internal=True, ipam=CreateIpam(config=[pool])))
        options = {"com.docker.network.bridge.enable_icc": "false", "com.docker.network.bridge.name": "apart0"}
        await service.create(CreateRequest(name="apart", options=options))
        files = {}
        for number, mode in enumerate(("bridge", "blue", "blue", "inner", "inner", "apart", "apart")):
            files[number] = await host.up(host.request(number, mode=mode))
            host.serve(number, 80)
        host.serve(host.outside, 9000)
        address = {n: service.sandbox(f"{n:064x}").endpoints[0].address for n in range(7)}
        assert (address[3], address[4]) == ("10.9.0.129", "10.9.0.130")
        assert host.ask(1, address[2], 80) == address[1]
        assert f"{address[2]}\th2\n" in files[2].hosts
        assert host.resolve(2, "c1") == (0, [address[1]])
        assert host.ask(3, address[4], 80) == address[3]
        assert host.ask(0, address[1], 80, 0.4) == "", "from the default bridge"
        assert host.ask(1, address[0], 80, 0.4) == "", "into the default bridge"
        assert host.ask(5, address[6], 80, 0.4) == "", "without inter-container communication"
        assert host.ask(5, host.outside_address, 9000) == host.host_address
        host.route_to(3, "10.9.0.128")
        assert host.ask(3, host.outside_address, 9000, 0.4) == "", "out of an internal network"
        assert host.ask(host.outside, address[4], 80, 0.4) == "", "into an internal network"
        assert "apart0" in host.link_names()
        with pytest.raises(PermissionDenied, match="has active endpoints"):
            await service.remove("blue")
        with pytest.raises(PermissionDenied, match="Pool overlaps"):
            await service.create(
                CreateRequest(name="again", ipam=CreateIpam(config=[IpamConfig(subnet="10.9.0.0/16")]))
            )
        for number in (1, 2):
            await service.close_sandbox(f"{number:064x}")
        await service.remove(blue.id)
        await service.retirement.drain()
        assert blue.bridge not in host.link_names()
        assert inner.bridge in host.link_names()

    on_private_host(scenario)


def test_connect_and_disconnect_a_running_container(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        service = host.service
        await service.create(CreateRequest(name="blue"))
        one, two = host.request(1, ports={"80/tcp": "8080"}), host.request(2, mode="blue")
        for number, request in ((1, one), (2, two)):
            await host.up(request)
            host.serve(number, 80)

        class Directory:
            def network_target(self, reference: str) -> NetworkTarget:
                return NetworkTarget(request={"c1": one, "c2": two}[reference], running=True)

        service.containers = Directory()
        blue_address = service.sandbox(two.container_id).endpoints[0].address
        assert host.ask(1, blue_address, 80, 0.4) == ""
        await attach.connect(service, "blue", "c1", {"IPAMConfig": {"IPv4Address": "172.18.0.77"}, "Aliases": ["x"]})
        assert host.ask(1, blue_address, 80) == "172.18.0.77"
        assert service.settings(one)["Networks"]["blue"]["IPAddress"] == "172.18.0.77"
        with pytest.raises(PermissionDenied, match="already exists in network blue"):
            await attach.connect(service, "blue", "c1", {})

        await attach.disconnect(service, "bridge", "c1", force=False)
        assert host.ask(host.outside, host.host_address, 8080, 0.4) == "", "its ports went with the network"
        host.serve(host.outside, 9000)
        assert host.ask(1, host.outside_address, 9000) == host.host_address, "the default route moved"
        for force in (False, True):
            with pytest.raises(PermissionDenied, match="is not connected"):
                await attach.disconnect(service, "bridge", "c1", force=force)
        await service.close_sandbox(one.container_id)
        await host.up(one)
        assert list(service.settings(one)["Networks"]) == ["blue"], "the choice outlives a restart of the container"

    on_private_host(scenario)


def test_a_flush_by_somebody_else_is_mended_at_once(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"80/tcp": "8080"}))
        host.serve(2, 80)
        for _ in range(3):
            await asyncio.to_thread(subprocess.run, ["nft", "flush", "ruleset"], check=True)
            deadline = time.monotonic() + 5
            while host.ask(host.outside, host.host_address, 8080, 0.3) != host.outside_address:
                assert time.monotonic() < deadline, "published ports were lost with the rule set"
                await asyncio.sleep(0.01)

    on_private_host(scenario)


def test_a_flushed_rule_set_is_made_again(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.up(host.request(2, ports={"80/tcp": "8080"}))
        host.service.kernel.firewall.remove()
        await host.up(host.request(3, ports={"80/tcp": "8081"}))
        host.serve(2, 80)
        host.serve(3, 80)
        for port in (8080, 8081):
            assert host.ask(host.outside, host.host_address, port) == host.outside_address

    on_private_host(scenario)


def test_a_deleted_bridge_is_made_again(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.service.run(host.service.kernel.delete_links, ["gantry0"])
        await host.up(host.request(2, ports={"80/tcp": "8080"}))
        host.serve(2, 80)
        assert host.ask(None, "127.0.0.1", 8080) == "172.17.0.1"

    on_private_host(scenario)


def test_a_used_network_is_avoided_and_a_failure_undone(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        service = host.service
        await service.create(CreateRequest(name="tiny", ipam=CreateIpam(config=[IpamConfig(subnet="10.7.0.0/30")])))
        await host.up(host.request(1, mode="tiny"))
        with pytest.raises(GantryError, match="no available IPv4 addresses"):
            await host.up(host.request(2, mode="tiny"))
        await service.close_sandbox(f"{2:064x}")
        with pytest.raises(PermissionDenied, match="already used"):
            await service.create(
                CreateRequest(name="twice", options={"com.docker.network.bridge.name": "gantry0"}),
            )
        with pytest.raises(Internal, match="cannot use interface wire as a bridge"):
            await service.create(CreateRequest(name="bad", options={"com.docker.network.bridge.name": "wire"}))
        assert "wire" in host.link_names(), "an interface of somebody else was deleted"
        assert service.registry.named("bad") is None

    on_private_host(scenario)
