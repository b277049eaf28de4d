"""Where the images of a registry host are: mirrors first, then the registry itself, each with its TLS settings.

Rule: a host is spoken to in clear only when it is loopback or an administrator said so; then TLS is tried first.
Source: containerd's ``hosts.toml``, Docker's ``certs.d``, dockerd's ``--registry-mirror`` and ``--insecure-registry``.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from oci.errors import FailedPrecondition, InvalidArgument
from oci.reference import DEFAULT_HOST
from oci.trust import CERTIFICATE_DIRECTORIES, Trust, certificates, host_directories, trust_of

ALL = frozenset({"pull", "resolve", "push"})
MIRROR = frozenset({"pull", "resolve"})


class Endpoint(NamedTuple):
    """One base URL that serves a registry's API. ``schemes`` in the order they are tried."""

    host: str
    schemes: tuple[str, ...] = ("https",)
    path: str = "/v2"
    trust: Trust = Trust()
    can: frozenset[str] = ALL
    headers: tuple[tuple[str, str], ...] = ()
    namespace: str = ""
    """The registry a mirror stands in for, sent as ``?ns=``; "" at the registry itself."""


class RegistryConfig(NamedTuple):
    """What an administrator said about registries.

    ``mirrors`` are base URLs for docker.io; ``insecure`` hosts (``host[:port]``) or networks in CIDR notation;
    ``directories`` hold one directory per host with ``hosts.toml`` or certificates.
    """

    mirrors: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    directories: tuple[str, ...] = CERTIFICATE_DIRECTORIES

    def is_insecure(self, host: str) -> bool:
        """Whether ``host`` may be spoken to in clear or with a certificate nobody vouches for."""
        name = bare_name(host)
        if name == "localhost" or host in self.insecure or name in self.insecure:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or any(address in network for network in _networks(self.insecure))


def bare_name(host: str) -> str:
    """``host`` without its port and brackets."""
    return urlsplit(f"//{host}").hostname or host


def _networks(entries: Sequence[str]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(entry, strict=False) for entry in entries if "/" in entry]


def api_host(host: str) -> str:
    """The host that serves the API of registry ``host``: the default registry's has another name."""
    return f"registry-1.{DEFAULT_HOST}" if host == DEFAULT_HOST else host


def endpoints(host: str, config: RegistryConfig, host_dir: str = "", scheme: str = "") -> list[Endpoint]:
    """Endpoints of ``host`` in the order to try; the client's own ``host_dir`` goes before our directories."""
    directories = (host_dir, *config.directories) if host_dir else config.directories
    own = [place for base in directories for place in host_directories(base, host)]
    for directory in (*own, *(os.path.join(base, "_default") for base in directories)):
        if os.path.exists(path := os.path.join(directory, "hosts.toml")):
            return _from_toml(path, host, config)
    found = [_mirror(url, host, config) for url in config.mirrors] if host == DEFAULT_HOST else []
    return [*found, _endpoint(host, config, trust_of(host, directories), scheme)]


def _endpoint(host: str, config: RegistryConfig, trust: Trust, scheme: str = "") -> Endpoint:
    if scheme:
        return Endpoint(api_host(host), (scheme,), trust=trust._replace(skip_verify=config.is_insecure(host)))
    if config.is_insecure(host):
        return Endpoint(api_host(host), ("https", "http"), trust=trust._replace(skip_verify=not trust.ca))
    return Endpoint(api_host(host), trust=trust)


def _mirror(url: str, host: str, config: RegistryConfig) -> Endpoint:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidArgument(f"invalid registry mirror {url!r}: expected http://host or https://host")
    trust = trust_of(parts.netloc, config.directories)
    trust = trust._replace(skip_verify=config.is_insecure(parts.netloc) and not trust.ca)
    return Endpoint(parts.netloc, (parts.scheme,), parts.path.rstrip("/") + "/v2", trust, MIRROR, namespace=host)


def _from_toml(path: str, host: str, config: RegistryConfig) -> list[Endpoint]:
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise FailedPrecondition(f"registry configuration {path}: {error}") from error
    base = os.path.dirname(path)
    found = [_toml_host(url, table, host, base) for url, table in (document.get("host") or {}).items()]
    server = str(document.get("server") or "")
    if server:
        found.append(_toml_host(server, {**document, "capabilities": sorted(ALL)}, host, base))
    elif not found or not any("push" in endpoint.can for endpoint in found):
        found.append(_endpoint(host, config, certificates(base)))
    return found


def _toml_host(url: str, table: dict[str, Any], host: str, base: str) -> Endpoint:
    parts = urlsplit(url if "://" in url else f"https://{url}")
    path = parts.path.rstrip("/")
    if not table.get("override_path") and not path.endswith("/v2"):
        path += "/v2"
    trust = Trust(_files(table.get("ca"), base), _pairs(table.get("client"), base), bool(table.get("skip_verify")))
    headers = [(key, v) for key, value in (table.get("header") or {}).items() for v in _strings(value)]
    can = frozenset(table.get("capabilities") or ALL)
    other = parts.netloc != api_host(host)
    return Endpoint(parts.netloc, (parts.scheme,), path, trust, can, tuple(headers), host if other else "")


def _strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value or ()]


def _files(value: Any, base: str) -> tuple[str, ...]:
    return tuple(os.path.join(base, name) for name in _strings(value))


def _pairs(value: Any, base: str) -> tuple[tuple[str, str], ...]:
    """``client``: one file with both, or a list of files or of [certificate, key] pairs."""
    entries = [value] if isinstance(value, str) else list(value or ())
    pairs = [(entry, "") if isinstance(entry, str) else (entry[0], entry[1]) for entry in entries]
    return tuple((os.path.join(base, cert), key and os.path.join(base, key)) for cert, key in pairs)
