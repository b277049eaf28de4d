"""What the kernel shall have: values that drivers make and ``kernel`` carries out.

Rule: a plan is complete; whoever carries it out decides nothing and asks nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.network.model import Address, Interface


@dataclass(frozen=True, slots=True)
class BridgePlan:
    """A bridge of the host with the gateway's ``addresses``. ``mac`` marks it as ours."""

    name: str
    addresses: tuple[Interface, ...]
    mac: bytes
    mtu: int
    ipv6: bool = False


@dataclass(frozen=True, slots=True)
class ParentPlan:
    """The interface that macvlan and ipvlan interfaces share; with ``own`` it is ours to make and to delete.

    One of our own is interface ``vlan`` of ``below``, or without ``below`` connected to nothing.
    """

    name: str
    kind: str
    own: bool = False
    below: str = ""
    vlan: int = 0


HostPlan = BridgePlan | ParentPlan


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """An interface made on a parent: ``kind`` is macvlan or ipvlan, ``mode`` and ``flags`` are the kernel's numbers."""

    kind: str
    mode: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class PlugPlan:
    """One interface of a container.

    ``veth`` names the host's end where there is a pair. ``gateways`` are where it gives the default route;
    ``default_links`` are the IP versions for which the interface itself is the default route. ``isolated`` keeps it
    from its neighbours; ``hairpin`` is for containers that publish ports. ``sysctls`` are of the container's namespace.
    """

    host: HostPlan
    device: str
    addresses: tuple[Interface, ...]
    mac: bytes
    mtu: int
    veth: str = ""
    child: ChildPlan | None = None
    gateways: tuple[Address, ...] = ()
    default_links: tuple[int, ...] = ()
    isolated: bool = False
    hairpin: bool = False
    sysctls: tuple[tuple[str, str], ...] = ()

    @property
    def ipv6(self) -> bool:
        return any(address.version == 6 for address in self.addresses)
