"""Networks and sandboxes as they are kept in ``engine.db``.

Rule: a document is written before what it describes is made in the kernel and deleted after it is gone, so a sweep at
start knows of everything. Kinds: ``network`` by network id, ``endpoint`` (one ``Sandbox``) by container id,
``attachment`` (networks connected or disconnected by API after create) by container id.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any

import msgspec

from engine.interfaces import SandboxRequest
from engine.network.firewall import PortRule

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Subnet = IPv4Network | IPv6Network

ZERO_TIME = "0001-01-01T00:00:00Z"
PREDEFINED = ("bridge", "host", "none")

OPTION_NAME = "com.docker.network.bridge.name"
OPTION_ICC = "com.docker.network.bridge.enable_icc"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPTION_HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
OPTION_DEFAULT = "com.docker.network.bridge.default_bridge"
OPTION_GATEWAY_MODE = {
    4: "com.docker.network.bridge.gateway_mode_ipv4",
    6: "com.docker.network.bridge.gateway_mode_ipv6",
}
OPTION_MTU = "com.docker.network.driver.mtu"
OPTION_DEVICE = "com.docker.network.endpoint.ifname"
OPTION_SYSCTLS = "com.docker.network.endpoint.sysctls"

DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    *((f"172.{n}.0.0/16", 16) for n in range(17, 32)),
    ("192.168.0.0/16", 20),
)
"""(base, prefix length of each network cut from it): Docker's own."""


class NetworkOptions(msgspec.Struct, frozen=True):
    """The daemon's network settings, under the names of dockerd's flags.

    ``bip`` is the default bridge's address with prefix length ("" to choose a free pool). With ``firewall`` off no
    rule is made and ports cannot be published (dockerd's ``--iptables=false``). ``table`` names the nftables table.
    ``data_root`` is where containers' name files are ("" when nobody shall change them); ``host_gateway`` are the
    addresses that ``host-gateway`` stands for (the default bridge's without any).
    """

    bridge: str = "gantry0"
    bip: str = ""
    mtu: int = 1500
    pools: tuple[tuple[str, int], ...] = DEFAULT_POOLS
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    host_binding: str = "0.0.0.0"
    icc: bool = True
    masquerade: bool = True
    firewall: bool = True
    ip_forward: bool = True
    ipv6: bool = False
    fixed_cidr: str = ""
    fixed_cidr_v6: str = ""
    host_gateway: tuple[str, ...] = ()
    table: str = "gantry"
    data_root: str = ""


class IpamConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """One address pool of a network: Docker's ``IPAM.Config`` entry."""

    subnet: str = msgspec.field(default="", name="Subnet")
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = msgspec.field(default="", name="Gateway")
    auxiliary: dict[str, str] = msgspec.field(default={}, name="AuxiliaryAddresses")

    @property
    def version(self) -> int:
        """4 or 6; by the first address that was given."""
        return 6 if ":" in (self.subnet or self.gateway or self.ip_range) else 4

    @property
    def network(self) -> Subnet:
        return ip_network(self.subnet)


def is_true(text: str, default: bool) -> bool:
    """A driver option's boolean, as Go's ``strconv.ParseBool`` reads it; ``default`` for anything else."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    return default


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One network.

    ``bridge`` is its interface on the host: a bridge, or the parent of macvlan and ipvlan ("" for host and none).
    ``pools`` has at most one entry of each family for a bridge.
    """

    id: str
    name: str
    driver: str
    created: str
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    ipv4: bool = True
    ipv6: bool = False
    config_only: bool = False
    config_from: str = ""
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    ipam_driver: str = "default"
    ipam_options: dict[str, str] | None = None
    pools: tuple[IpamConfig, ...] = ()
    bridge: str = ""
    own_parent: bool = False
    """Whether the parent interface (a VLAN) was made for this network and goes with it."""

    @property
    def predefined(self) -> bool:
        """Whether it is one of ``bridge``, ``host`` and ``none``, which cannot be removed."""
        return self.name in PREDEFINED

    @property
    def default_bridge(self) -> bool:
        return self.name == "bridge"

    @property
    def connects(self) -> bool:
        """Whether its containers get an interface and addresses of it."""
        return bool(self.bridge)

    @property
    def names(self) -> bool:
        """Whether the engine's DNS server answers on it: on every network a user made."""
        return self.connects and not self.default_bridge

    def pools_of(self, version: int) -> list[IpamConfig]:
        """Its pools of IP version 4 or 6."""
        return [pool for pool in self.pools if pool.version == version]

    def pool_of(self, address: Address) -> IpamConfig | None:
        """The pool that holds ``address``."""
        return next((pool for pool in self.pools if address in pool.network), None)

    def interface(self, address: str) -> Interface:
        """``address`` (one of its own) with its subnet's prefix length."""
        pool = self.pool_of(ip_address(address))
        length = pool.network.prefixlen if pool is not None else ip_address(address).max_prefixlen
        return ip_interface(f"{address}/{length}")

    def gateway_of(self, address: str) -> str:
        """The gateway of the pool that holds ``address``, or ""."""
        pool = self.pool_of(ip_address(address)) if address else None
        return pool.gateway if pool is not None else ""

    @property
    def gateways(self) -> tuple[Interface, ...]:
        """The gateway's addresses with prefix lengths, one for each pool that has one."""
        return tuple(self.interface(pool.gateway) for pool in self.pools if pool.gateway)

    @property
    def icc(self) -> bool:
        return is_true(self.options.get(OPTION_ICC, ""), True)

    def gateway_mode(self, version: int) -> str:
        """``nat``, ``nat-unprotected``, ``routed`` or ``isolated``."""
        return self.options.get(OPTION_GATEWAY_MODE[version]) or "nat"

    def mtu(self, default: int) -> int:
        """MTU of its interfaces, in bytes."""
        text = self.options.get(OPTION_MTU, "")
        return int(text) if text.isdigit() and int(text) else default


class Published(msgspec.Struct, frozen=True):
    """One published port as bound: ``host_ip`` is an address ("0.0.0.0" or "::" for all).

    ``host_port`` 0 is a port opened on the container's own address (gateway mode ``routed``). A ``relayed`` one is
    an IPv6 port of a container without IPv6: no rule translates it, the process that serves names passes its bytes on.
    """

    host_ip: str
    host_port: int
    port: int
    protocol: str
    relayed: bool = False

    @property
    def version(self) -> int:
        return 6 if ":" in self.host_ip else 4


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a container: ``veth`` is the host's end ("" where there is none), ``device`` the name inside.

    ``address`` is its IPv4 and ``address6`` its IPv6 address, each may be "". MAC as text.
    """

    id: str
    network_id: str
    network: str
    address: str = ""
    address6: str = ""
    mac: str = ""
    veth: str = ""
    device: str = ""
    ports: tuple[Published, ...] = ()
    config: dict[str, Any] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses it has, IPv4 first."""
        return tuple(address for address in (self.address, self.address6) if address)

    def port_rules(self) -> list[PortRule]:
        """The firewall's elements for its published ports."""
        return [self._rule(port) for port in self.ports]

    def _rule(self, port: Published) -> PortRule:
        address = self.address6 if port.version == 6 and not port.relayed else self.address
        return PortRule(
            ip_address(port.host_ip), port.protocol, port.host_port, ip_address(address), port.port
        )  # host_port 0: opened on the container's own address


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """What a container was given: written before it is made. ``endpoints`` are in order of their devices."""

    id: str
    request: SandboxRequest
    endpoints: tuple[Endpoint, ...] = ()
    shared_with: str = ""
    resolv: str = ""
    """``hostfiles.digest`` of the resolv.conf that it was given."""

    def on(self, network_id: str) -> Endpoint | None:
        """Its endpoint on a network."""
        return next((e for e in self.endpoints if e.network_id == network_id), None)

    @property
    def on_default_bridge(self) -> bool:
        return any(e.network == "bridge" for e in self.endpoints)


def mac_of(address: Address) -> str:
    """The hardware address derived from an address, so that it never changes hands without its address."""
    return "02:42:" + address.packed[-4:].hex(":")


def mac_bytes(mac: str) -> bytes:
    """``02:42:ac:11:00:02`` as six bytes; raises ``ValueError``."""
    data = bytes.fromhex(mac.replace(":", "").replace("-", ""))
    if len(data) != 6:
        raise ValueError(f"a hardware address has 6 bytes, not {len(data)}")
    return data
