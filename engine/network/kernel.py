"""The kernel's side of networks: bridges, interfaces and the firewall of the namespace gantryd lives in.

Rule: everything here blocks and runs on the service's one worker thread, in the order it was asked for; every method
is idempotent. What is made has a name from a record that is already on disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from engine.network import netns, rtnl
from engine.network.firewall import BridgeRules, Firewall, PortRule
from engine.network.model import NetworkOptions, mac_bytes, mac_of
from engine.network.netlink import GONE, NETLINK_ROUTE, Message, Netlink, NetlinkError
from oci.errors import Internal

VETH_PREFIX = "gveth"
"""Host ends of containers' interfaces: the prefix and ten digits of the endpoint's id make 15 characters."""

BRIDGE_PREFIX = "gbr-"


@dataclass(frozen=True, slots=True)
class BridgePlan:
    """One bridge as it shall be."""

    name: str
    address: IPv4Interface
    mtu: int


@dataclass(frozen=True, slots=True)
class PlugPlan:
    """One interface of a container; ``gateway`` is None where it gives no default route.

    ``isolated`` keeps it from its neighbours; ``hairpin`` is for containers that publish ports.
    """

    bridge: BridgePlan
    veth: str
    device: str
    address: IPv4Interface
    mac: bytes
    gateway: IPv4Address | None
    isolated: bool
    hairpin: bool


class HostKernel:
    """Netlink sockets kept open, and what is known to exist."""

    def __init__(self, options: NetworkOptions) -> None:
        self._options = options
        self._route: Netlink | None = None
        self._firewall: Firewall | None = None
        self._bridges: dict[str, rtnl.Link] = {}
        self._rules: tuple[BridgeRules, ...] | None = None

    @property
    def route(self) -> Netlink:
        if self._route is None:
            self._route = Netlink(NETLINK_ROUTE)
        return self._route

    @property
    def firewall(self) -> Firewall:
        if self._firewall is None:
            self._firewall = Firewall(self._options.table)
        return self._firewall

    def close(self) -> None:
        """Close the sockets; all else stays."""
        for opened in (self._route, self._firewall):
            if opened is not None:
                opened.close()
        self._route = self._firewall = None

    def foreign_networks(self, own: Iterable[str]) -> list[IPv4Network]:
        """Networks this host has routes or addresses for, on interfaces other than the bridges called ``own``."""
        mine = {link.index for link in rtnl.links(self.route) if link.name in set(own)}
        routed = [network for network, index in rtnl.route_networks(self.route) if index not in mine]
        return routed + [a.network for a, index in rtnl.addresses(self.route) if index not in mine]

    def ensure_bridge(self, plan: BridgePlan) -> rtnl.Link:
        """The bridge, made and addressed if it was not there."""
        known = self._bridges.get(plan.name)
        if known is not None:
            return known
        link = rtnl.find_link(self.route, plan.name)
        if link is None:
            self.route.request(rtnl.new_bridge(plan.name, mac_bytes(mac_of(plan.address.ip)), plan.mtu))
            link = rtnl.find_link(self.route, plan.name)
        if link is None or link.kind != "bridge":
            raise Internal(
                f"cannot use interface {plan.name} as a bridge: it is {'gone' if link is None else 'something else'}",
                hint="choose another name with --bridge or the option com.docker.network.bridge.name",
            )
        self.route.request(rtnl.new_address(link.index, plan.address), rtnl.set_up(link.index))
        self._sysctl(f"net/ipv4/conf/{plan.name}/route_localnet", "1")
        if self._options.ip_forward:
            self._sysctl("net/ipv4/ip_forward", "1")
        self._bridges[plan.name] = link
        return link

    def _sysctl(self, name: str, value: str) -> None:
        path = f"/proc/sys/{name}"
        with open(path, encoding="ascii") as file:
            if file.read().strip() == value:
                return
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write(value)
        except OSError as error:
            key = name.replace("/", ".")
            raise Internal(
                f"cannot set {key} to {value}: {error.strerror}", hint=f"run: sysctl -w {key}={value}"
            ) from error

    def remove_bridge(self, plan: BridgePlan) -> None:
        """Delete a bridge that we made: one with the hardware address we give ours. Idempotent."""
        self._bridges.pop(plan.name, None)
        link = rtnl.find_link(self.route, plan.name)
        if link is not None and link.kind == "bridge" and link.address == mac_bytes(mac_of(plan.address.ip)):
            self.delete_links([plan.name])

    def apply_rules(self, rules: Sequence[BridgeRules], ports: Iterable[PortRule], *, force: bool = False) -> None:
        """Make the firewall hold ``rules`` (and ``ports``); does nothing if the networks have not changed."""
        if not self._options.firewall or (self._rules == tuple(rules) and not force):
            return
        self.firewall.replace(rules, ports)
        self._rules = tuple(rules)

    def publish(self, ports: Sequence[PortRule]) -> None:
        """Open published ports."""
        if not ports:
            return
        if not self._options.firewall:
            raise Internal(
                "cannot publish ports: this engine runs without its firewall", hint="start it without --iptables=false"
            )
        self.firewall.publish(ports)

    def unpublish(self, ports: Sequence[PortRule]) -> None:
        """Close published ports. Idempotent."""
        if ports and self._options.firewall:
            self.firewall.unpublish(ports)

    def plug(self, plan: PlugPlan, pin: str, inside: Netlink | None) -> None:
        """Make a container's interface, up, addressed and routed; ``inside`` is a route socket of its namespace."""
        own = inside is None
        socket = inside if inside is not None else netns.route_socket(pin)
        try:
            gateway_mac = self._make_pair(plan, pin)
            link = rtnl.find_link(socket, plan.device)
            if link is None:
                raise Internal(f"interface {plan.device} did not appear in the namespace {pin}")
            setup: list[Message] = [rtnl.new_address(link.index, plan.address), rtnl.set_up(link.index)]
            setup.append(rtnl.neighbour(plan.bridge.address.ip, gateway_mac, link.index))
            if plan.gateway is not None:
                setup.append(rtnl.default_route(plan.gateway, link.index))
            socket.request(*setup)
        finally:
            if own:
                socket.close()

    def _make_pair(self, plan: PlugPlan, pin: str) -> bytes:
        """Make the veth pair; the bridge's hardware address."""
        descriptor = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
        try:
            attempt = 0
            while True:
                attempt += 1
                master = self.ensure_bridge(plan.bridge)
                pair = rtnl.new_veth(plan.veth, master.index, plan.bridge.mtu, plan.device, plan.mac, descriptor)
                messages = [pair, rtnl.neighbour(plan.address.ip, plan.mac, master.index)]
                if plan.hairpin or plan.isolated:
                    messages.append(rtnl.bridge_port(plan.veth, hairpin=plan.hairpin, isolated=plan.isolated))
                try:
                    self.route.request(*messages)
                    return master.address
                except NetlinkError as error:
                    # Somebody deleted the bridge behind our back: its index is no longer valid.
                    if attempt == 2 or error.errno not in (errno.ENODEV, errno.EINVAL):
                        raise
                    self._bridges.pop(plan.bridge.name, None)
                    self.delete_links([plan.veth])
        finally:
            os.close(descriptor)

    def set_default_route(self, pin: str, device: str, gateway: IPv4Address) -> None:
        """Point a running container's default route at another of its interfaces."""
        socket = netns.route_socket(pin)
        try:
            link = rtnl.find_link(socket, device)
            if link is not None:
                socket.request(rtnl.default_route(gateway, link.index))
        finally:
            socket.close()

    def present(self, names: Iterable[str]) -> set[str]:
        """Which of these interfaces exist."""
        wanted = set(names)
        if len(wanted) == 1:
            return {name for name in wanted if rtnl.find_link(self.route, name) is not None}
        return {link.name for link in rtnl.links(self.route)} & wanted

    def delete_links(self, names: Iterable[str]) -> None:
        """Delete interfaces. Idempotent. Each takes a grace period of the kernel (tens of milliseconds)."""
        for name in names:
            try:
                self.route.request(rtnl.delete_link(name))
            except NetlinkError as error:
                if error.errno not in GONE:
                    raise

    def stray_veths(self, bridges: Iterable[str], known: Iterable[str]) -> list[str]:
        """Host ends in one of our bridges that belong to no known endpoint."""
        found = rtnl.links(self.route)
        masters = {link.index for link in found if link.name in set(bridges)}
        expected = set(known)
        return [
            x.name for x in found if x.name.startswith(VETH_PREFIX) and x.master in masters and x.name not in expected
        ]

    def remove_table(self) -> None:
        """Delete our firewall table. Idempotent."""
        self._rules = None
        if self._options.firewall:
            self.firewall.remove()


def stray_pins(directory: str, keep: Iterable[str]) -> list[str]:
    """Paths of pins in ``directory`` whose container id is not in ``keep``."""
    expected = set(keep)
    with contextlib.suppress(FileNotFoundError):
        return [f"{directory}/{name}" for name in sorted(os.listdir(directory)) if name not in expected]
    return []
