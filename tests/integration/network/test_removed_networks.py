"""Networks that were removed: out of use at once, their bridges deleted later, whoever dies in between."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from engine.network import rtnl
from engine.network.creation import CreateIpam, CreateRequest
from engine.network.model import IpamConfig
from engine.network.netlink import NETLINK_ROUTE, Netlink
from engine.network.retiring import KIND

pytestmark = pytest.mark.root

Run = Callable[[Any], None]

BRIDGE = "com.docker.network.bridge.name"


def table() -> str:
    """Our table as text."""
    return subprocess.run(["nft", "list", "table", "inet", "gantry"], capture_output=True, text=True, check=True).stdout


def used() -> list[str]:
    """Subnets this namespace has routes or addresses for."""
    netlink = Netlink(NETLINK_ROUTE)
    found = [str(network) for network, _ in rtnl.route_networks(netlink)]
    found += [str(address.network) for address, _ in rtnl.addresses(netlink)]
    netlink.close()
    return found


def green(name: str = "green") -> CreateRequest:
    pools = [IpamConfig(subnet="10.44.0.0/24"), IpamConfig(subnet="fd44::/64")]
    return CreateRequest(name=name, enable_ipv6=True, ipam=CreateIpam(config=pools), options={BRIDGE: "green0"})


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bridges of removed networks wait until somebody drains them."""
    monkeypatch.setattr("engine.network.retiring.QUIET", 3600.0)


def test_what_it_had_can_be_had_again_at_once(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        service = host.service
        for _ in range(3):
            await service.create(green())
            await host.up(host.request(1, mode="green"))
            stop = host.serve(1, 80)
            assert host.ask(None, "10.44.0.2", 80) == "10.44.0.1"
            stop()
            await service.close_sandbox(f"{1:064x}")
            await service.reaper.drain()
            await service.remove("green")
            assert not any(network.startswith(("10.44.", "fd44:")) for network in used()), "not in anybody's way"
        await service.retirement.drain()
        assert "green0" not in host.link_names()
        assert list(host.store.all(KIND)) == []

    on_private_host(scenario)


def test_the_firewall_forgets_one_network_and_no_other(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.service.create(CreateRequest(name="stays"))
        before = table()
        await host.service.create(green())
        await host.service.create(CreateRequest(name="inner", internal=True))
        assert "green0" in table()
        await host.service.remove("green")
        await host.service.remove("inner")
        assert table() == before

    on_private_host(scenario)


def test_a_flushed_rule_set_is_made_again_without_it(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        await host.service.create(CreateRequest(name="stays"))
        before = table()
        await host.service.create(green())
        host.service._watcher.stop()
        await asyncio.to_thread(subprocess.run, ["nft", "flush", "ruleset"], check=True)
        await host.service.remove("green")
        assert sorted(table().split()) == sorted(before.split())

    on_private_host(scenario)


def test_the_next_daemon_deletes_what_a_killed_one_left(on_private_host: Run, later: None) -> None:
    async def scenario(host: Any) -> None:
        await host.service.create(green())
        await host.service.remove("green")
        await host.service.close()
        assert "green0" in host.link_names(), "deleted by the first daemon: nothing is tested here"
        host.service = host.new_service()
        await host.service.restore(frozenset())
        await host.service.retirement.drain()
        assert "green0" not in host.link_names()
        assert list(host.store.all(KIND)) == []

    on_private_host(scenario)


def test_a_removal_cut_short_before_the_record_is_undone(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        network = await host.service.create(green())
        plan = host.service.registry.host_plan(network)
        host.service.retirement.note(network.id, plan)
        await host.service.run(host.service.kernel.retire, plan)
        await host.service.close()
        host.service = host.new_service()
        await host.service.restore(frozenset())
        await host.up(host.request(1, mode="green"))
        host.serve(1, 80, "::")
        assert host.ask(None, "10.44.0.2", 80) == "::ffff:10.44.0.1"
        assert host.ask(None, "fd44::2", 80) == "fd44::1"
        assert list(host.store.all(KIND)) == []
        await host.service.close_sandbox(f"{1:064x}")

    on_private_host(scenario)


def test_an_interface_that_took_the_name_is_left_alone(on_private_host: Run, later: None) -> None:
    async def scenario(host: Any) -> None:
        await host.service.create(green())
        await host.service.remove("green")
        await host.service.close()
        await host.service.reaper.delete(["green0"])
        netlink = Netlink(NETLINK_ROUTE)
        netlink.request(rtnl.new_bridge("green0", b"\2\0\0\0\0\7", 1500))
        host.service = host.new_service()
        await host.service.restore(frozenset())
        await host.service.retirement.drain()
        assert "green0" in host.link_names()
        assert list(host.store.all(KIND)) == []
        netlink.request(rtnl.delete_link("green0"))
        netlink.close()

    on_private_host(scenario)
