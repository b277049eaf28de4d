"""The kinds of networks behind one interface: what each accepts and what it wants of the kernel.

Rule: a driver is stateless and touches nothing; it turns records into plans. A new kind of network is one class here,
its plan's execution in ``kernel``, and a line in the suite that every driver passes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from ipaddress import ip_address
from typing import Protocol

from engine.network.firewall import BridgeRules
from engine.network.model import (
    OPTION_GATEWAY_MODE,
    OPTION_HOST_BINDING,
    OPTION_ICC,
    OPTION_MASQUERADE,
    OPTION_MTU,
    OPTION_NAME,
    OPTION_SYSCTLS,
    Endpoint,
    Network,
    NetworkOptions,
    is_true,
    mac_bytes,
    mac_of,
)
from engine.network.plans import BridgePlan, ChildPlan, HostPlan, ParentPlan, PlugPlan
from oci.errors import InvalidArgument

BRIDGE_PREFIX = "gbr-"
PARENT_PREFIX = "dm-"
IFNAME_LIMIT = 15
OPTION_PARENT = "parent"
OPTION_INHIBIT = "com.docker.network.bridge.inhibit_ipv4"
GATEWAY_MODES = ("nat", "nat-unprotected", "routed", "isolated")
_VLAN = re.compile(r"(.+)\.(\d{1,4})")


class Driver(Protocol):
    """One kind of network. Life cycle of a network: ``check``, ``host`` made, endpoints plugged, ``host`` removed."""

    name: str
    publishes: bool
    """Whether host ports can lead to its containers."""

    def interface(self, network: Network) -> str:
        """The host's interface of a new network: from its options, else from its id."""

    def check(self, network: Network) -> None:
        """Raise ``InvalidArgument`` for options that make no sense."""

    def host(self, network: Network, options: NetworkOptions) -> HostPlan | None:
        """What the host needs for it; None for nothing."""

    def rules(self, network: Network) -> BridgeRules | None:
        """What the firewall needs to know; None for nothing."""

    def plug(
        self, network: Network, endpoint: Endpoint, default_route: Collection[int], options: NetworkOptions
    ) -> PlugPlan | None:
        """The container's interface; ``default_route`` are the IP versions whose default route it gives."""


def check_interface_name(name: str, what: str) -> None:
    """Raise ``InvalidArgument`` for what the kernel does not take as an interface's name."""
    if not name or len(name.encode()) > IFNAME_LIMIT or "/" in name or name in (".", "..") or _spaced(name):
        raise InvalidArgument(f"invalid {what} {name!r}: at most {IFNAME_LIMIT} bytes, no slash, no space")


def _spaced(name: str) -> bool:
    return any(c.isspace() or not c.isprintable() for c in name)


def _check_common(network: Network) -> None:
    mtu = network.options.get(OPTION_MTU, "")
    if mtu and not (mtu.isascii() and mtu.isdigit() and 68 <= int(mtu) <= 65535):
        raise InvalidArgument(f"invalid MTU {mtu!r} of network {network.name}: a number of bytes from 68 to 65535")


def _gateways(network: Network, endpoint: Endpoint, versions: Collection[int]) -> list[str]:
    found = [network.gateway_of(address) for address in endpoint.addresses]
    return [gateway for gateway in found if gateway and (6 if ":" in gateway else 4) in versions]


def endpoint_sysctls(endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    """Driver option ``com.docker.network.endpoint.sysctls`` as (name, value); raises ``InvalidArgument``.

    As in Docker only ``net.X.Y.IFNAME.Z=value`` is taken, and the word IFNAME stands for the interface.
    """
    out = []
    for setting in filter(None, ((endpoint.config.get("DriverOpts") or {}).get(OPTION_SYSCTLS) or "").split(",")):
        name, equals, value = setting.partition("=")
        words = name.split(".")
        if not equals or len(words) != 5 or words[0] != "net" or words[3] != "IFNAME" or "/" in name:
            raise InvalidArgument(f"unrecognised network interface sysctl '{setting}'; write net.X.Y.IFNAME.Z=value")
        words[3] = endpoint.device
        out.append(("/".join(words), value))
    return tuple(out)


class BridgeDriver:
    """A bridge of the host, whose address is the gateway; one subnet of each IP version."""

    name = "bridge"
    publishes = True

    def interface(self, network: Network) -> str:
        return network.options.get(OPTION_NAME) or f"{BRIDGE_PREFIX}{network.id[:11]}"

    def check(self, network: Network) -> None:
        _check_common(network)
        check_interface_name(network.bridge, "bridge name")
        for option in (OPTION_ICC, OPTION_MASQUERADE, OPTION_INHIBIT):
            text = network.options.get(option, "")
            if text and is_true(text, True) != is_true(text, False):
                raise InvalidArgument(f"invalid value {text!r} of {option}: it is true or false")
        binding = network.options.get(OPTION_HOST_BINDING, "")
        if binding:
            try:
                ip_address(binding)
            except ValueError:
                raise InvalidArgument(f"invalid value {binding!r} of {OPTION_HOST_BINDING}: not an address") from None
        for version, option in OPTION_GATEWAY_MODE.items():
            mode = network.gateway_mode(version)
            if mode not in GATEWAY_MODES:
                raise InvalidArgument(f"unknown gateway mode {mode}", hint=f"{option}: {', '.join(GATEWAY_MODES)}")
            if mode == "isolated" and not network.internal:
                raise InvalidArgument("gateway mode 'isolated' can only be used for an internal network")
            if len(network.pools_of(version)) > 1:
                raise InvalidArgument(
                    f"bridge networks take one IPv{version} subnet", hint="make one network for each subnet"
                )

    def _addressed(self, network: Network, version: int) -> bool:
        inhibited = version == 4 and is_true(network.options.get(OPTION_INHIBIT, ""), False)
        return network.gateway_mode(version) != "isolated" and not inhibited

    def host(self, network: Network, options: NetworkOptions) -> BridgePlan:
        addresses = tuple(g for g in network.gateways if self._addressed(network, g.version))
        first = next((g.ip for g in network.gateways), None)
        if first is not None:
            mac = mac_bytes(mac_of(first))
        else:
            mac = b"\2\x42" + hashlib.sha256(network.id.encode()).digest()[:4]
        return BridgePlan(network.bridge, addresses, mac, network.mtu(options.mtu), network.ipv6)

    def rules(self, network: Network) -> BridgeRules:
        subnets = [p.network for p in network.pools]
        modes = {version: network.gateway_mode(version) for version in (4, 6)}
        natted = [s for s in subnets if modes[s.version].startswith("nat")]
        masquerade = is_true(network.options.get(OPTION_MASQUERADE, ""), True) and not network.internal
        return BridgeRules(
            network.bridge,
            masquerade=tuple(natted) if masquerade else (),
            hairpin=tuple(natted),
            routed=tuple(v for v in (4, 6) if modes[v] == "routed"),
            direct=tuple(v for v in (4, 6) if modes[v] == "nat-unprotected"),
            internal=network.internal,
            icc=network.icc,
        )

    def plug(
        self, network: Network, endpoint: Endpoint, default_route: Collection[int], options: NetworkOptions
    ) -> PlugPlan:
        return PlugPlan(
            host=self.host(network, options),
            device=endpoint.device,
            addresses=tuple(network.interface(a) for a in endpoint.addresses),
            mac=mac_bytes(endpoint.mac),
            mtu=network.mtu(options.mtu),
            veth=endpoint.veth,
            gateways=tuple(ip_address(g) for g in _gateways(network, endpoint, default_route)),
            isolated=not network.icc,
            hairpin=bool(endpoint.ports),
            sysctls=endpoint_sysctls(endpoint),
        )


class ChildDriver:
    """Interfaces of containers on an interface of the host: macvlan and ipvlan."""

    publishes = False

    def __init__(self, name: str, modes: dict[str, int], flags: dict[str, int]) -> None:
        """``modes`` and ``flags`` are words and the kernel's numbers (linux/if_link.h), the defaults first."""
        self.name = name
        self._modes = modes
        self._flags = flags

    def interface(self, network: Network) -> str:
        return network.options.get(OPTION_PARENT) or f"{PARENT_PREFIX}{network.id[:12]}"

    def _child(self, network: Network) -> ChildPlan:
        mode = network.options.get(f"{self.name}_mode") or next(iter(self._modes))
        flag = network.options.get(f"{self.name}_flag") or next(iter(self._flags))
        if mode not in self._modes:
            raise InvalidArgument(f"unknown {self.name} mode {mode!r}", hint=f"one of {', '.join(self._modes)}")
        if flag not in self._flags:
            raise InvalidArgument(f"unknown {self.name} flag {flag!r}", hint=f"one of {', '.join(self._flags)}")
        return ChildPlan(self.name, self._modes[mode], self._flags[flag])

    def check(self, network: Network) -> None:
        _check_common(network)
        check_interface_name(network.bridge, "parent interface")
        self._child(network)
        if network.internal and network.options.get(OPTION_PARENT):
            raise InvalidArgument(
                f"an internal {self.name} network has no parent interface", hint="leave out -o parent=…"
            )
        vlan = _VLAN.fullmatch(network.bridge)
        if vlan and int(vlan[2]) not in range(1, 4095):
            raise InvalidArgument(f"invalid VLAN id {vlan[2]} of parent interface {network.bridge}: 1 to 4094")

    def host(self, network: Network, options: NetworkOptions) -> ParentPlan:
        if not network.options.get(OPTION_PARENT):
            return ParentPlan(network.bridge, self.name, own=True)
        vlan = _VLAN.fullmatch(network.bridge)
        if vlan:
            return ParentPlan(network.bridge, self.name, own=network.own_parent, below=vlan[1], vlan=int(vlan[2]))
        return ParentPlan(network.bridge, self.name)

    def rules(self, network: Network) -> None:
        return None

    def plug(
        self, network: Network, endpoint: Endpoint, default_route: Collection[int], options: NetworkOptions
    ) -> PlugPlan:
        routed = self.name == "ipvlan" and network.options.get("ipvlan_mode") in ("l3", "l3s")
        versions = {6 if ":" in address else 4 for address in endpoint.addresses}
        gateways = () if routed else _gateways(network, endpoint, default_route)
        return PlugPlan(
            host=self.host(network, options),
            device=endpoint.device,
            addresses=tuple(network.interface(a) for a in endpoint.addresses),
            mac=mac_bytes(endpoint.mac) if endpoint.mac else b"",
            mtu=network.mtu(0),
            child=self._child(network),
            gateways=tuple(ip_address(g) for g in gateways),
            default_links=tuple(v for v in default_route if v in versions) if routed else (),
            sysctls=endpoint_sysctls(endpoint),
        )


class PlainDriver:
    """``host`` and ``null``: nothing is made."""

    publishes = False

    def __init__(self, name: str) -> None:
        self.name = name

    def interface(self, network: Network) -> str:
        return ""

    def check(self, network: Network) -> None:
        return None

    def host(self, network: Network, options: NetworkOptions) -> None:
        return None

    def rules(self, network: Network) -> None:
        return None

    def plug(
        self, network: Network, endpoint: Endpoint, default_route: Collection[int], options: NetworkOptions
    ) -> None:
        return None


DRIVERS: dict[str, Driver] = {
    driver.name: driver
    for driver in (
        BridgeDriver(),
        ChildDriver("macvlan", {"bridge": 4, "private": 1, "vepa": 2, "passthru": 8}, {"": 0, "nopromisc": 1}),
        ChildDriver("ipvlan", {"l2": 0, "l3": 1, "l3s": 2}, {"bridge": 0, "private": 1, "vepa": 2}),
        PlainDriver("host"),
        PlainDriver("null"),
    )
}


def driver_of(network: Network) -> Driver:
    """The driver of a recorded network."""
    return DRIVERS[network.driver]
