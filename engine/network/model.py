"""Networks and sandboxes as they are kept in ``engine.db``.

Rule: a document is written before what it describes is made in the kernel and deleted after it is gone, so a sweep at
start knows of everything. Kinds: ``network`` by network id, ``endpoint`` (one ``Sandbox``) by container id,
``attachment`` (networks connected or disconnected by API after create) by container id.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import msgspec

from engine.interfaces import SandboxRequest
from engine.network.firewall import BridgeRules, PortRule

ZERO_TIME = "0001-01-01T00:00:00Z"
PREDEFINED = ("bridge", "host", "none")

OPTION_NAME = "com.docker.network.bridge.name"
OPTION_ICC = "com.docker.network.bridge.enable_icc"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPTION_HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
OPTION_DEFAULT = "com.docker.network.bridge.default_bridge"
OPTION_MTU = "com.docker.network.driver.mtu"

DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    *((f"172.{n}.0.0/16", 16) for n in range(17, 32)),
    ("192.168.0.0/16", 20),
)
"""(base, prefix length of each network cut from it): Docker's own."""


class NetworkOptions(msgspec.Struct, frozen=True):
    """The daemon's network settings, under the names of dockerd's flags.

    ``bip`` is the default bridge's address with prefix length ("" to choose a free pool). With ``firewall`` off no
    rule is made and ports cannot be published (dockerd's ``--iptables=false``). ``table`` names the nftables table.
    """

    bridge: str = "gantry0"
    bip: str = ""
    mtu: int = 1500
    pools: tuple[tuple[str, int], ...] = DEFAULT_POOLS
    dns: tuple[str, ...] = ()
    host_binding: str = "0.0.0.0"
    icc: bool = True
    masquerade: bool = True
    firewall: bool = True
    ip_forward: bool = True
    table: str = "gantry"


class IpamConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """One address pool of a network: Docker's ``IPAM.Config`` entry."""

    subnet: str = msgspec.field(default="", name="Subnet")
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = msgspec.field(default="", name="Gateway")
    auxiliary: dict[str, str] = msgspec.field(default={}, name="AuxiliaryAddresses")


def is_true(text: str, default: bool) -> bool:
    """A driver option's boolean, as Go's ``strconv.ParseBool`` reads it; ``default`` for anything else."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    return default


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One network. ``bridge`` is its interface name ("" for host and none); ``pools`` has one entry for a bridge."""

    id: str
    name: str
    driver: str
    created: str
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    ipam_driver: str = "default"
    ipam_options: dict[str, str] | None = None
    pools: tuple[IpamConfig, ...] = ()
    bridge: str = ""

    @property
    def predefined(self) -> bool:
        """Whether it is one of ``bridge``, ``host`` and ``none``, which cannot be removed."""
        return self.name in PREDEFINED

    @property
    def default_bridge(self) -> bool:
        return self.name == "bridge"

    @property
    def subnet(self) -> IPv4Network:
        return IPv4Network(self.pools[0].subnet)

    @property
    def gateway(self) -> IPv4Address:
        return IPv4Address(self.pools[0].gateway)

    @property
    def gateway_interface(self) -> IPv4Interface:
        return IPv4Interface((self.gateway, self.subnet.prefixlen))

    @property
    def icc(self) -> bool:
        return is_true(self.options.get(OPTION_ICC, ""), True)

    def mtu(self, default: int) -> int:
        """MTU of the bridge and its endpoints, in bytes."""
        text = self.options.get(OPTION_MTU, "")
        return int(text) if text.isdigit() and int(text) else default

    def rules(self) -> BridgeRules:
        """What the firewall needs to know."""
        masquerade = is_true(self.options.get(OPTION_MASQUERADE, ""), True)
        return BridgeRules(self.bridge, self.subnet, masquerade, self.internal, self.icc)


class Published(msgspec.Struct, frozen=True):
    """One published port as bound: ``host_ip`` is an address ("0.0.0.0" for all)."""

    host_ip: str
    host_port: int
    port: int
    protocol: str

    def rule(self, address: str) -> PortRule:
        """The firewall's element for a container at ``address``."""
        return PortRule(IPv4Address(self.host_ip), self.protocol, self.host_port, IPv4Address(address), self.port)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a container: ``veth`` is the host's end, ``device`` the name inside; MAC as text."""

    id: str
    network_id: str
    network: str
    address: str = ""
    mac: str = ""
    veth: str = ""
    device: str = ""
    ports: tuple[Published, ...] = ()
    config: dict[str, Any] = {}


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """What a container was given: written before it is made. ``endpoints`` are in order of their devices."""

    id: str
    request: SandboxRequest
    endpoints: tuple[Endpoint, ...] = ()
    shared_with: str = ""


def mac_of(address: IPv4Address) -> str:
    """The hardware address derived from an IPv4 address, so that it never changes hands without its address."""
    return "02:42:" + address.packed.hex(":")


def mac_bytes(mac: str) -> bytes:
    """``02:42:ac:11:00:02`` as six bytes; raises ``ValueError``."""
    data = bytes.fromhex(mac.replace(":", "").replace("-", ""))
    if len(data) != 6:
        raise ValueError(f"a hardware address has 6 bytes, not {len(data)}")
    return data
