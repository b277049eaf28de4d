"""One suite for every driver that connects containers: what holds for a bridge holds for macvlan and ipvlan."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.interfaces import NetworkTarget
from engine.network import attach
from engine.network.creation import ConfigFrom, CreateIpam, CreateRequest
from engine.network.model import IpamConfig
from engine.network.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from engine.network.netns import CLONE_NEWNET, on_own_thread
from engine.network.rtnl import find_link, new_plain
from oci.errors import FailedPrecondition, GantryError, InvalidArgument, PermissionDenied

pytestmark = pytest.mark.root

Run = Callable[[Any], None]

LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Kind:
    """One driver as a test makes networks of it."""

    driver: str
    options: dict[str, str] = field(default_factory=dict)
    macs: bool = True

    def create(self, name: str, **more: Any) -> CreateRequest:
        pools = [IpamConfig(subnet="10.20.0.0/24", ip_range="10.20.0.64/26"), IpamConfig(subnet="fd20::/64")]
        ipam = CreateIpam(config=more.pop("pools", pools))
        return CreateRequest(name=name, driver=self.driver, options=self.options, ipam=ipam, **more)


KINDS = [
    Kind("bridge"),
    Kind("macvlan", {"parent": "wire"}),
    Kind("macvlan"),
    Kind("ipvlan", {"parent": "wire"}, macs=False),
    Kind("ipvlan", {"parent": "wire", "ipvlan_mode": "l3"}, macs=False),
]


def missing(driver: str) -> bool:
    """Whether the kernel does not have this kind of interface."""

    def probe() -> bool:
        if LIBC.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        netlink = Netlink(NETLINK_ROUTE)
        try:
            netlink.request(new_plain("probe", driver))
        except NetlinkError as error:
            return error.errno == errno.EOPNOTSUPP
        finally:
            netlink.close()
        return False

    return on_own_thread(probe)


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join((kind.driver, *kind.options.values())))
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    if missing(found.driver):
        pytest.skip(f"this kernel has no {found.driver}")
    return found


def test_two_containers_talk_by_both_versions(on_private_host: Run, kind: Kind) -> None:
    async def scenario(host: Any) -> None:
        service = host.service
        await service.create(kind.create("net", enable_ipv6=True))
        for number in (1, 2):
            await host.up(host.request(number, mode="net"))
            host.serve(number, 80)
            host.serve(number, 81, "::")
        first, second = (service.sandbox(f"{n:064x}").endpoints[0] for n in (1, 2))
        assert (first.address, second.address6) == ("10.20.0.65", "fd20::3")
        assert host.ask(1, second.address, 80) == first.address
        assert host.ask(2, first.address6, 81) == second.address6
        assert host.resolve(1, "c2") == (0, [second.address])
        view = service.inspect("net")["Containers"][f"{1:064x}"]
        assert (view["IPv4Address"], view["IPv6Address"]) == ("10.20.0.65/24", "fd20::2/64")

    on_private_host(scenario)


def test_fixed_addresses_and_interface(on_private_host: Run, kind: Kind) -> None:
    async def scenario(host: Any) -> None:
        service = host.service
        await service.create(kind.create("net", enable_ipv6=True))
        config = {
            "IPAMConfig": {"IPv4Address": "10.20.0.200", "IPv6Address": "fd20::99"},
            "DriverOpts": {
                "com.docker.network.endpoint.ifname": "lan7",
                "com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.log_martians=1",
            },
            **({"MacAddress": "02:00:00:00:00:77"} if kind.macs else {}),
        }
        request = host.request(1, mode="net", endpoints={"net": config})
        await host.up(request)
        settings = service.settings(request)["Networks"]["net"]
        assert (settings["IPAddress"], settings["GlobalIPv6Address"]) == ("10.20.0.200", "fd20::99")

        def look() -> tuple[bytes, str]:
            netlink = Netlink(NETLINK_ROUTE)
            link = find_link(netlink, "lan7")
            netlink.close()
            assert link is not None
            with open("/proc/sys/net/ipv4/conf/lan7/log_martians", encoding="ascii") as file:
                return link.address, file.read().strip()

        mac, martians = host.within(1, look)
        assert martians == "1"
        if kind.macs:
            assert (mac, settings["MacAddress"]) == (bytes.fromhex("020000000077"), "02:00:00:00:00:77")
        with pytest.raises(FailedPrecondition, match="Address already in use"):
            await host.up(host.request(2, mode="net", endpoints={"net": config}))
        with pytest.raises(InvalidArgument, match="no configured subnet contains IP address"):
            service.validate(
                host.request(3, mode="net", endpoints={"net": {"IPAMConfig": {"IPv4Address": "10.9.9.9"}}})
            )
        with pytest.raises(InvalidArgument, match="unrecognised network interface sysctl"):
            options = {"com.docker.network.endpoint.sysctls": "kernel.panic=1"}
            service.validate(host.request(3, mode="net", endpoints={"net": {"DriverOpts": options}}))

    on_private_host(scenario)


def test_an_internal_network_leads_nowhere(on_private_host: Run, kind: Kind) -> None:
    if kind.driver != "bridge" and kind.options:
        pytest.skip("with a parent it is not internal")

    async def scenario(host: Any) -> None:
        service = host.service
        await service.create(kind.create("net", internal=True, enable_ipv6=True))
        for number in (1, 2):
            await host.up(host.request(number, mode="net"))
            host.serve(number, 80)
        assert host.ask(1, "10.20.0.66", 80) == "10.20.0.65"
        with pytest.raises(OSError, match="unreachable"):
            host.within(1, lambda: socket.create_connection((host.outside_address, 80), 1))
        assert service.settings(host.request(1, mode="net"))["Networks"]["net"]["Gateway"] == ""

    on_private_host(scenario)


def test_connect_disconnect_and_a_restart_of_the_engine(on_private_host: Run, kind: Kind) -> None:
    async def scenario(host: Any) -> None:
        service = host.service
        await service.create(kind.create("net", enable_ipv6=True))
        one, two = host.request(1), host.request(2, mode="net")
        await host.up(one)
        await host.up(two)
        host.serve(2, 80)

        class Directory:
            def network_target(self, reference: str) -> NetworkTarget:
                return NetworkTarget(request=one, running=True)

        service.containers = Directory()
        await attach.connect(service, "net", "c1", {"Aliases": ["x"]})
        assert host.ask(1, "10.20.0.65", 80) == "10.20.0.66"
        await service.close()
        service = host.service = host.new_service()
        service.containers = Directory()
        await service.restore(frozenset({one.container_id, two.container_id}))
        assert host.ask(1, "10.20.0.65", 80) == "10.20.0.66", "kept over the restart"
        await host.up(host.request(3, mode="net"))
        assert service.sandbox(f"{3:064x}").endpoints[0].address == "10.20.0.67", "nobody's address twice"
        await attach.disconnect(service, "net", "c1", force=False)
        assert host.within(1, lambda: sorted(name for _, name in socket.if_nameindex())) == ["eth0", "lo"]
        await attach.connect(service, "net", "c1", {})
        assert service.sandbox(one.container_id).endpoints[-1].address == "10.20.0.66", "given back and taken again"
        for number in (1, 2, 3):
            await service.close_sandbox(f"{number:064x}")
        await service.reaper.drain()
        await host.up(host.request(4, mode="net"))
        assert service.sandbox(f"{4:064x}").endpoints[0].address == "10.20.0.65"

    on_private_host(scenario)


def test_removal_leaves_what_is_not_ours(on_private_host: Run, kind: Kind) -> None:
    async def scenario(host: Any) -> None:
        before = host.link_names()
        network = await host.service.create(kind.create("net"))
        assert network.bridge in host.link_names()
        with pytest.raises(PermissionDenied, match="already"):
            await host.service.create(
                CreateRequest(
                    name="again",
                    driver=kind.driver,
                    options={
                        **kind.options,
                        "parent": network.bridge,
                        "com.docker.network.bridge.name": network.bridge,
                    },
                )
            )
        await host.service.remove("net")
        await host.service.retirement.drain()
        assert host.link_names() == before

    on_private_host(scenario)


def test_several_subnets(on_private_host: Run, kind: Kind) -> None:
    async def scenario(host: Any) -> None:
        pools = [IpamConfig(subnet="10.20.0.0/30"), IpamConfig(subnet="10.21.0.0/24")]
        if kind.driver == "bridge":
            with pytest.raises(InvalidArgument, match="one IPv4 subnet"):
                await host.service.create(kind.create("net", pools=pools))
            return
        await host.service.create(kind.create("net", pools=pools))
        found = []
        for number in (1, 2, 3):
            await host.up(host.request(number, mode="net"))
            found.append(host.service.sandbox(f"{number:064x}").endpoints[0].address)
        assert found == ["10.20.0.2", "10.21.0.2", "10.21.0.3"]

    on_private_host(scenario)


def test_what_the_kernel_or_the_host_lacks_is_named(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        async def refused(driver: str, **options: str) -> str:
            with pytest.raises(GantryError) as caught:
                await host.service.create(CreateRequest(name="x", driver=driver, options=options))
            assert host.service.registry.named("x") is None
            return str(caught.value)

        if missing("ipvlan"):
            assert "network driver ipvlan is not available: this host's kernel does not have it" in await refused(
                "ipvlan", parent="wire"
            )
        if not missing("macvlan"):
            assert "parent interface nothere: it is not on this host" in await refused("macvlan", parent="nothere")
        assert "unknown macvlan mode 'x'" in await refused("macvlan", parent="wire", macvlan_mode="x")
        assert "invalid VLAN id 4095" in await refused("macvlan", parent="wire.4095")
        assert "invalid MTU 'x'" in await refused("bridge", **{"com.docker.network.driver.mtu": "x"})

    on_private_host(scenario)


def test_macvlan_reaches_other_machines_under_its_own_address(on_private_host: Run) -> None:
    if missing("macvlan"):
        pytest.skip("this kernel has no macvlan")

    async def scenario(host: Any) -> None:
        pool = IpamConfig(subnet="192.0.2.0/24", gateway="192.0.2.2", ip_range="192.0.2.128/25")
        ipam = CreateIpam(config=[pool])
        await host.service.create(CreateRequest(name="lan", driver="macvlan", options={"parent": "wire"}, ipam=ipam))
        await host.up(host.request(1, mode="lan"))
        host.serve(host.outside, 9000)
        assert host.ask(1, host.outside_address, 9000) == "192.0.2.128"
        host.serve(1, 80)
        assert host.ask(host.outside, "192.0.2.128", 80) == host.outside_address

    on_private_host(scenario)


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_a_vlan_parent_is_made_and_goes_with_its_network(on_private_host: Run, driver: str) -> None:
    if missing(driver) or missing("vlan"):
        pytest.skip(f"this kernel has no {driver} or no VLANs")

    async def scenario(host: Any) -> None:
        before = host.link_names()
        options = {"parent": "wire.44"}
        await host.service.create(CreateRequest(name="lan", driver=driver, options=options))
        assert host.link_names() == before | {"wire.44"}
        for number in (1, 2):
            await host.up(host.request(number, mode="lan"))
            host.serve(number, 80)
        assert host.ask(1, host.service.sandbox(f"{2:064x}").endpoints[0].address, 80) != ""
        for number in (1, 2):
            await host.service.close_sandbox(f"{number:064x}")
        await host.service.remove("lan")
        assert host.link_names() == before

    on_private_host(scenario)


def test_config_only_networks_lend_their_settings(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        pool = IpamConfig(subnet="10.33.0.0/24")
        ipam = CreateIpam(config=[pool])
        before = host.link_names()
        await host.service.create(CreateRequest(name="plan", config_only=True, ipam=ipam, labels={"a": "b"}))
        assert host.link_names() == before
        with pytest.raises(InvalidArgument, match="configuration network"):
            host.service.validate(host.request(1, mode="plan"))
        made = await host.service.create(CreateRequest(name="built", config_from=ConfigFrom("plan")))
        assert (made.pools[0].subnet, made.labels, made.config_from) == ("10.33.0.0/24", {"a": "b"}, "plan")
        with pytest.raises(PermissionDenied, match="is not a configuration network"):
            await host.service.create(CreateRequest(name="more", config_from=ConfigFrom("built")))

    on_private_host(scenario)


def test_mtu_of_bridge_and_container(on_private_host: Run) -> None:
    async def scenario(host: Any) -> None:
        options = {"com.docker.network.driver.mtu": "1400", "com.docker.network.bridge.name": "small0"}
        await host.service.create(CreateRequest(name="small", options=options))
        await host.up(host.request(1, mode="small"))

        def mtu(name: str) -> str:
            # sysfs shows the namespace it was mounted in; the ioctl asks the caller's.
            import fcntl
            import struct

            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                answer = fcntl.ioctl(probe, 0x8921, struct.pack("16s16x", name.encode()))
            return str(struct.unpack_from("i", answer, 16)[0])

        assert (mtu("small0"), host.within(1, lambda: mtu("eth0"))) == ("1400", "1400")
        assert os.path.exists("/proc/sys/net/ipv4/conf/small0")

    on_private_host(scenario)
