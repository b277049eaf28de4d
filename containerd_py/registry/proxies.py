"""Which HTTP proxy the environment names for a URL, by the rules that Docker's users know.

Rule: this machine itself is never reached by way of a proxy; what ``NO_PROXY`` lists neither. An entry is ``*``, an
address, a network in CIDR notation, or a domain: ``example.com`` means it and all below it, ``.example.com`` only those
below; ``:port`` at its end restricts it to that port. Source: Go's ``golang.org/x/net/http/httpproxy`` documentation.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from oci.errors import FailedPrecondition

_PORTS = {"http": 80, "https": 443}


def proxy_for(url: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The proxy for ``url``; None for a direct connection. Raises ``FailedPrecondition`` for one we cannot speak to."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    proxy = _variable(environment, f"{parts.scheme}_proxy")
    if not proxy or _is_loopback(host) or _excepted(host, parts.port or _PORTS.get(parts.scheme, 0), environment):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise FailedPrecondition(f"proxy {urlsplit(proxy).scheme}://… is not supported", hint="use an HTTP proxy")
    return proxy


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name.upper(), "") or environment.get(name, "")


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _excepted(host: str, port: int, environment: Mapping[str, str]) -> bool:
    entries = _variable(environment, "no_proxy").lower().split(",")
    return any(_matches(entry.strip(), host, port) for entry in entries if entry.strip())


def _matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, wanted = _split_port(entry)
    if wanted and wanted != port:
        return False
    if address is not None:
        return _address(name) == address
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _split_port(entry: str) -> tuple[str, int]:
    """(name, port) of an entry; port 0 for any."""
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and (":" not in name or name.startswith("[")):
        return name.removeprefix("*"), int(port)
    return entry.removeprefix("*"), 0
