"""The kernel's side of networks: bridges, interfaces and the firewall of the namespace gantryd lives in.

Rule: everything here blocks and runs on the service's one worker thread, in the order it was asked for; every method
is idempotent. What is made has a name from a record that is already on disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv6Interface

import structlog

from engine.network import netns, rtnl
from engine.network.conntrack import Flows, has_datagrams
from engine.network.firewall import BridgeRules, Firewall, PortRule
from engine.network.model import Address, NetworkOptions, Subnet
from engine.network.netlink import GONE, NETLINK_ROUTE, Message, Netlink, NetlinkError
from engine.network.plans import BridgePlan, ChildPlan, HostPlan, ParentPlan, PlugPlan
from oci.errors import FailedPrecondition, Internal, InvalidArgument

log = structlog.get_logger()

VETH_PREFIX = "gveth"
"""Host ends of containers' interfaces: the prefix and ten digits of the endpoint's id make 15 characters."""

_Maker = Callable[[rtnl.Link, int], list[Message]]
"""Messages for the host's interface and a container's namespace (a descriptor)."""

LINK_LOCAL = IPv6Interface("fe80::1/64")
"""What a bridge answers to as a router, as Docker's do."""


class HostKernel:
    """Netlink sockets kept open, and what is known to exist."""

    def __init__(self, options: NetworkOptions) -> None:
        self._options = options
        self._route: Netlink | None = None
        self._firewall: Firewall | None = None
        self._flows: Flows | None = None
        self._known: dict[str, rtnl.Link] = {}
        self._rules: tuple[BridgeRules, ...] | None = None
        self._forwarding: set[int] = set()

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

    @property
    def flows(self) -> Flows:
        if self._flows is None:
            self._flows = Flows()
        return self._flows

    def close(self) -> None:
        """Close the sockets; all else stays."""
        for opened in (self._route, self._firewall, self._flows):
            if opened is not None:
                opened.close()
        self._route = self._firewall = self._flows = None

    def foreign_networks(self, own: Iterable[str]) -> list[Subnet]:
        """Networks this host has routes or addresses for, on interfaces other than the bridges called ``own``."""
        mine = {link.index for link in rtnl.links(self.route) if link.name in set(own)}
        routed = [network for network, index in rtnl.route_networks(self.route) if index not in mine]
        return routed + [a.network for a, index in rtnl.addresses(self.route) if index not in mine]

    # What networks need of the host

    def ensure(self, plan: HostPlan, *, force: bool = False) -> rtnl.Link:
        """The host's interface of a network, made and set up if it was not there; ``force`` looks again."""
        known = self._known.get(plan.name)
        if known is not None and not force:
            return known
        link = self._bridge(plan) if isinstance(plan, BridgePlan) else self._parent(plan)
        self._known[plan.name] = link
        return link

    def forget(self, name: str) -> None:
        """What was known of an interface no longer holds."""
        self._known.pop(name, None)

    def _bridge(self, plan: BridgePlan) -> rtnl.Link:
        link = rtnl.find_link(self.route, plan.name)
        if link is None:
            self.route.request(rtnl.new_bridge(plan.name, plan.mac, plan.mtu))
            link = rtnl.find_link(self.route, plan.name)
        if link is None or link.kind != "bridge":
            raise Internal(
                f"cannot use interface {plan.name} as a bridge: it is {'gone' if link is None else 'something else'}",
                hint="choose another name with --bridge or the option com.docker.network.bridge.name",
            )
        addresses = [*plan.addresses, LINK_LOCAL] if plan.ipv6 else plan.addresses
        self._switch_ipv6(plan)
        self.route.request(*(rtnl.new_address(link.index, a) for a in addresses), rtnl.set_up(link.index))
        if any(address.version == 4 for address in plan.addresses):
            self._sysctl(f"net/ipv4/conf/{plan.name}/route_localnet", "1")
        self._forward(4)
        if plan.ipv6:
            self._forward(6)
        return link

    def _switch_ipv6(self, plan: BridgePlan) -> None:
        """An IPv4 network's bridge has no IPv6 at all; an IPv6 network's takes no routes from its containers."""
        place = f"net/ipv6/conf/{plan.name}"
        if not os.path.exists(f"/proc/sys/{place}"):
            if plan.ipv6:
                raise FailedPrecondition("this host's kernel has IPv6 disabled", hint="boot without ipv6.disable=1")
            return
        if plan.ipv6:
            self._sysctl(f"{place}/accept_ra", "0")
        self._sysctl(f"{place}/disable_ipv6", "0" if plan.ipv6 else "1")

    def _forward(self, version: int) -> None:
        if not self._options.ip_forward or version in self._forwarding:
            return
        if version == 4:
            self._sysctl("net/ipv4/ip_forward", "1")
        else:
            self._keep_router_advertisements()
            self._sysctl("net/ipv6/conf/all/forwarding", "1")
        self._forwarding.add(version)

    def _keep_router_advertisements(self) -> None:
        """A host that forwards ignores advertisements (and loses its default route) unless told to take them (2)."""
        root = "/proc/sys/net/ipv6/conf"
        with open(f"{root}/all/forwarding", encoding="ascii") as file:
            if file.read().strip() == "1":
                return
        for name in os.listdir(root):
            with contextlib.suppress(OSError), open(f"{root}/{name}/accept_ra", "r+", encoding="ascii") as file:
                if file.read().strip() == "1":
                    file.seek(0)
                    file.write("2")

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

    def _parent(self, plan: ParentPlan) -> rtnl.Link:
        self._check_kind(plan.kind)
        link = rtnl.find_link(self.route, plan.name)
        if link is None and plan.vlan:
            below = rtnl.find_link(self.route, plan.below)
            if below is not None:
                self._make_vlan(plan, below)
        elif link is None and plan.own:
            self._make_unconnected(plan.name)
        link = link or rtnl.find_link(self.route, plan.name)
        if link is None:
            raise InvalidArgument(
                f"invalid subinterface or parent interface {plan.name}: it is not on this host",
                hint="give an interface of `ip link` as -o parent=…",
            )
        if not link.up:
            self.route.request(rtnl.set_up(link.index))
        return link

    def _check_kind(self, kind: str) -> None:
        """The kernel answers EINVAL for a known kind without settings, EOPNOTSUPP for one it does not have."""
        try:
            self.route.request(rtnl.new_plain("gantry-probe", kind))
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise FailedPrecondition(
                    f"network driver {kind} is not available: this host's kernel does not have it",
                    hint=f"load the module {kind}, or use a kernel built with CONFIG_{kind.upper()}",
                ) from None

    def _make_vlan(self, plan: ParentPlan, below: rtnl.Link) -> None:
        try:
            self.route.request(rtnl.new_vlan(plan.name, below.index, plan.vlan))
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise FailedPrecondition(
                    f"cannot make VLAN interface {plan.name}: this host's kernel has no VLANs",
                    hint="load the module 8021q, or make the interface yourself",
                ) from None
            raise

    def _make_unconnected(self, name: str) -> None:
        """A parent that leads nowhere: a dummy interface, or a bridge without ports where the kernel has none."""
        try:
            self.route.request(rtnl.new_plain(name, "dummy"))
        except NetlinkError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self.route.request(rtnl.new_plain(name, "bridge"))

    def remove(self, plan: HostPlan) -> None:
        """Delete the host's interface of a network if it is ours. Idempotent.

        A bridge is ours when it has the hardware address we give ours.
        """
        self._known.pop(plan.name, None)
        link = rtnl.find_link(self.route, plan.name)
        if link is None:
            return
        if _is_ours(plan, link):
            self.delete_links([plan.name])

    def retire(self, plan: BridgePlan) -> bool:
        """Take a bridge of ours out of use at once: down, without addresses; whether there is one to delete.

        Deleting it takes the kernel two RCU grace periods (30 to 50 ms), one of them under the lock that every change
        of an interface needs.
        """
        self._known.pop(plan.name, None)
        link = rtnl.find_link(self.route, plan.name)
        if link is None or not _is_ours(plan, link):
            return False
        addresses = (rtnl.delete_address(link.index, address) for address in plan.addresses)
        for refusal in self.route.request_all((rtnl.set_down(link.index), *addresses)):
            if refusal.errno not in GONE:
                raise refusal
        return True

    def has_bridge(self, name: str, mac: bytes) -> bool:
        """Whether there is a bridge of this name and hardware address."""
        link = rtnl.find_link(self.route, name)
        return link is not None and link.kind == "bridge" and link.address == mac

    # Firewall

    def apply_rules(self, rules: Sequence[BridgeRules], ports: Sequence[PortRule], *, force: bool = False) -> None:
        """Make the firewall hold ``rules`` (and ``ports``); does nothing if the networks have not changed."""
        if not self._options.firewall or (self._rules == tuple(rules) and not force):
            return
        self.firewall.replace(rules, ports)
        self._rules = tuple(rules)

    def add_rules(self, rules: BridgeRules) -> None:
        """Add one network to those the firewall knows. Raises ``NetlinkError`` (ENOENT) when the table is gone."""
        if self._options.firewall:
            self.firewall.add(rules)
            self._rules = (*(self._rules or ()), rules)

    def withdraw_rules(self, rules: BridgeRules) -> None:
        """Take one network out of the firewall. Raises ``NetlinkError`` (ENOENT) when somebody changed the table."""
        if self._options.firewall:
            self._rules = tuple(known for known in self._rules or () if known.bridge != rules.bridge)
            self.firewall.withdraw(rules)

    def publish(self, ports: Sequence[PortRule]) -> None:
        """Open published ports."""
        if not ports:
            return
        if not self._options.firewall:
            raise Internal(
                "cannot publish ports: this engine runs without its firewall", hint="start it without --iptables=false"
            )
        self.firewall.publish(ports)
        self.forget_flows(ports, published=True)

    def unpublish(self, ports: Sequence[PortRule]) -> None:
        """Close published ports. Idempotent."""
        if ports and self._options.firewall:
            self.firewall.unpublish(ports)
            self.forget_flows(ports, published=False)

    def forget_flows(self, ports: Sequence[PortRule], *, published: bool) -> None:
        """Make UDP clients of ports that have just been published, or no longer are, begin anew."""
        if not has_datagrams(ports):
            return
        try:
            if published:
                self.flows.published(ports, {address.ip for address, _ in rtnl.addresses(self.route)})
            else:
                self.flows.unpublished(ports)
        except OSError as error:
            # A kernel without nf_conntrack_netlink: such clients go on once they have been silent for two minutes.
            log.warning("UDP clients of published ports may be led to their old place", error=str(error))

    def table_is_there(self) -> bool:
        """Whether our firewall table exists."""
        return self.firewall.exists()

    def remove_table(self) -> None:
        """Delete our firewall table. Idempotent."""
        self._rules = None
        if self._options.firewall:
            self.firewall.remove()

    # Interfaces of containers

    def plug(self, plan: PlugPlan, pin: str, inside: Netlink | None) -> None:
        """Make a container's interface, up, addressed and routed; ``inside`` is a route socket of its namespace."""
        own = inside is None
        socket = inside if inside is not None else netns.route_socket(pin)
        try:
            gateway_mac = self._make_child(plan, plan.child, pin) if plan.child else self._make_pair(plan, pin)
            link = rtnl.find_link(socket, plan.device)
            if link is None:
                raise Internal(f"interface {plan.device} did not appear in the namespace {pin}")
            if plan.ipv6:
                netns.write_sysctls(pin, ((f"net/ipv6/conf/{plan.device}/disable_ipv6", "0"),))
            socket.request(*_set_up(plan, link.index, gateway_mac))
            if plan.sysctls:
                netns.write_sysctls(pin, plan.sysctls)
        finally:
            if own:
                socket.close()

    def _make_pair(self, plan: PlugPlan, pin: str) -> bytes:
        """Make the veth pair; the bridge's hardware address."""

        def make(master: rtnl.Link, descriptor: int) -> list[Message]:
            pair = rtnl.new_veth(plan.veth, master.index, plan.mtu, plan.device, plan.mac, descriptor)
            neighbours = [rtnl.neighbour(a.ip, plan.mac, master.index) for a in plan.addresses if a.version == 4]
            flags = plan.hairpin or plan.isolated
            port = [rtnl.bridge_port(plan.veth, hairpin=plan.hairpin, isolated=plan.isolated)] if flags else []
            return [pair, *neighbours, *port]

        return self._make_on(plan.host, pin, make, plan.veth).address

    def _make_child(self, plan: PlugPlan, child: ChildPlan, pin: str) -> bytes:
        def make(parent: rtnl.Link, descriptor: int) -> list[Message]:
            shape = (child.mode, child.flags)
            return [rtnl.new_child(child.kind, plan.device, parent.index, plan.mac, plan.mtu, *shape, descriptor)]

        self._make_on(plan.host, pin, make, "")
        return b""

    def _make_on(self, host: HostPlan, pin: str, make: _Maker, veth: str) -> rtnl.Link:
        """Send what ``make`` says for the host's interface; once more if somebody deleted that behind our back."""
        descriptor = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
        try:
            attempt = 0
            while True:
                attempt += 1
                link = self.ensure(host)
                try:
                    self.route.request(*make(link, descriptor))
                    return link
                except NetlinkError as error:
                    if attempt == 2 or error.errno not in (errno.ENODEV, errno.EINVAL):
                        raise
                    self.forget(host.name)
                    self.delete_links([veth] if veth else [])
        finally:
            os.close(descriptor)

    def set_default_route(self, pin: str, device: str, gateways: Sequence[Address]) -> None:
        """Point a running container's default routes at another of its interfaces."""
        socket = netns.route_socket(pin)
        try:
            link = rtnl.find_link(socket, device)
            if link is not None:
                socket.request(*(rtnl.default_route(gateway, link.index) for gateway in gateways))
        finally:
            socket.close()

    def unplug_inside(self, pin: str, devices: Iterable[str]) -> None:
        """Delete interfaces that have no end on the host from within the namespace. Idempotent."""
        socket = netns.route_socket(pin)
        try:
            for device in devices:
                _delete(socket, device)
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
            _delete(self.route, name)

    def stray_veths(self, bridges: Iterable[str], known: Iterable[str]) -> list[str]:
        """Host ends in one of our bridges that belong to no known endpoint."""
        found = rtnl.links(self.route)
        masters = {link.index for link in found if link.name in set(bridges)}
        expected = set(known)
        return [
            x.name for x in found if x.name.startswith(VETH_PREFIX) and x.master in masters and x.name not in expected
        ]


def _set_up(plan: PlugPlan, index: int, gateway_mac: bytes) -> list[Message]:
    out = [*(rtnl.new_address(index, address) for address in plan.addresses), rtnl.set_up(index)]
    if gateway_mac and isinstance(plan.host, BridgePlan):
        out += [rtnl.neighbour(a.ip, gateway_mac, index) for a in plan.host.addresses if a.version == 4]
    out += [rtnl.default_route(gateway, index) for gateway in plan.gateways]
    return out + [rtnl.default_link(version, index) for version in plan.default_links]


def _is_ours(plan: HostPlan, link: rtnl.Link) -> bool:
    if isinstance(plan, ParentPlan):
        return plan.own
    return link.kind == "bridge" and link.address == plan.mac


def _delete(netlink: Netlink, name: str) -> None:
    try:
        netlink.request(rtnl.delete_link(name))
    except NetlinkError as error:
        if error.errno not in GONE:
            raise


def stray_pins(directory: str, keep: Iterable[str]) -> list[str]:
    """Paths of pins in ``directory`` whose container id is not in ``keep``."""
    expected = set(keep)
    with contextlib.suppress(FileNotFoundError):
        return [f"{directory}/{name}" for name in sorted(os.listdir(directory)) if name not in expected]
    return []
