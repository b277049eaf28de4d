"""``/etc/hosts`` and ``/etc/resolv.conf`` of containers, by Docker's rules.

Rule: text in, text out; the host's own files are read by ``host_file`` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

HOSTS_HEAD = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)
FALLBACK_SERVERS = ("8.8.8.8", "8.8.4.4")
"""What Docker uses when the host has only resolvers on its loopback."""

RESOLV_CONF = "/etc/resolv.conf"
SYSTEMD_RESOLV_CONF = "/run/systemd/resolve/resolv.conf"
"""The upstream servers of systemd-resolved, whose stub on 127.0.0.53 containers cannot reach."""

HOST_GATEWAY = "host-gateway"


def host_file(path: str) -> str:
    """The text of a file of the host; "" when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def extra_entries(extra_hosts: Iterable[str], gateway: str) -> list[tuple[str, str]]:
    """``--add-host`` values (``name:address``, ``name=address``, ``host-gateway``) as (address, name)."""
    out = []
    for item in extra_hosts:
        separator = "=" if "=" in item else ":"
        name, _, address = item.partition(separator)
        address = address.strip("[]")
        if address == HOST_GATEWAY:
            if not gateway:
                continue
            address = gateway
        out.append((address, name))
    return out


def hosts(entries: Iterable[tuple[str, str]]) -> str:
    """A hosts file: the fixed head, then ``entries`` of (address, names)."""
    return "".join(f"{address}\t{names}\n" for address, names in (*HOSTS_HEAD, *entries))


def _lines(text: str, keyword: str) -> list[list[str]]:
    return [words[1:] for line in text.splitlines() if (words := line.split("#")[0].split()) and words[0] == keyword]


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address.split("%", maxsplit=1)[0]).is_loopback
    except ValueError:
        return False


def resolv_conf(
    host: str,
    *,
    servers: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    own_loopback: bool = False,
) -> str:
    """A resolv.conf: what was asked for, and for the rest the host's.

    The host's servers on its loopback are left out, since they are not the container's, unless ``own_loopback`` says
    that the container shares the host's namespace. ``search`` of ``.`` means none.
    """
    found = list(servers) or [words[0] for words in _lines(host, "nameserver") if words]
    if not servers and not own_loopback:
        found = [address for address in found if not _is_loopback(address)] or list(FALLBACK_SERVERS)
    domains = list(search) or next((words for words in reversed(_lines(host, "search"))), [])
    if domains == ["."]:
        domains = []
    settings = list(options) or [word for words in _lines(host, "options") for word in words]
    out = [f"nameserver {address}" for address in found]
    if domains:
        out.append(f"search {' '.join(domains)}")
    if settings:
        out.append(f"options {' '.join(settings)}")
    return "\n".join(out) + "\n"


def host_resolv_conf() -> str:
    """The host's resolv.conf, or its upstream form where the host runs a stub resolver of systemd."""
    text = host_file(RESOLV_CONF)
    servers = [words[0] for words in _lines(text, "nameserver") if words]
    if servers == ["127.0.0.53"]:
        return host_file(SYSTEMD_RESOLV_CONF) or text
    return text
