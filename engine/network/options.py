"""The daemon's flags as network options.

Rule: a flag that the daemon does not have (yet) is at its default; a value that makes no sense is refused at start.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Protocol

from engine.network.ipam import parse_bip, parse_network, parse_pools
from engine.network.model import NetworkOptions
from oci.errors import InvalidArgument


class NetworkFlags(Protocol):
    """The daemon flags that concern networks and are always there (``engine.config.Config`` has them)."""

    @property
    def bridge(self) -> str: ...
    @property
    def bip(self) -> str: ...
    @property
    def mtu(self) -> int: ...
    @property
    def address_pools(self) -> tuple[str, ...]: ...
    @property
    def dns(self) -> tuple[str, ...]: ...


OPTIONAL = {
    "dns_search": "dns_search",
    "dns_opt": "dns_options",
    "ip": "host_binding",
    "icc": "icc",
    "ip_masq": "masquerade",
    "iptables": "firewall",
    "ip_forward": "ip_forward",
    "ipv6": "ipv6",
    "fixed_cidr": "fixed_cidr",
    "fixed_cidr_v6": "fixed_cidr_v6",
    "host_gateway_ip": "host_gateway",
}
"""Names of flags (dockerd's) and the options they set, where the daemon has them."""


def options_of(given: NetworkOptions | NetworkFlags | None) -> NetworkOptions:
    """The daemon's flags as network options; raises ``InvalidArgument`` for values that make no sense."""
    if given is None:
        return NetworkOptions()
    if isinstance(given, NetworkOptions):
        return given
    defaults = NetworkOptions()
    more: dict[str, Any] = {}
    for flag, option in OPTIONAL.items():
        value = getattr(given, flag, None)
        if value not in (None, "", ()):
            more[option] = value
    paths = getattr(given, "paths", None)
    options = NetworkOptions(
        bridge=given.bridge or defaults.bridge,
        bip=str(parse_bip(given.bip)) if given.bip else "",
        mtu=given.mtu or defaults.mtu,
        pools=parse_pools(given.address_pools) or defaults.pools,
        dns=given.dns,
        data_root=paths.data_root if paths is not None else "",
        **more,
    )
    _check(options)
    return options


def _check(options: NetworkOptions) -> None:
    for text, what in ((options.fixed_cidr, "--fixed-cidr"), (options.fixed_cidr_v6, "--fixed-cidr-v6")):
        if text:
            parse_network(text, what)
    for text in (*options.dns, *options.host_gateway, options.host_binding):
        try:
            ip_address(text)
        except ValueError:
            raise InvalidArgument(f"{text!r} is not an IP address", hint="see --dns, --ip, --host-gateway-ip") from None
