"""Published ports: what a request asks for, and holding host ports against everybody else.

Rule: a host port is held by a bound socket in the engine's network namespace, so a port used by any program is seen,
and by a table of our own for conflicts between containers. The kernel's firewall carries the traffic; the sockets see
none of it, and their loss with a killed daemon stops nothing.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from engine.interfaces import PortBinding, SandboxRequest
from engine.network.firewall import PROTOCOLS
from engine.network.model import Published
from oci.errors import Internal, InvalidArgument, ResourceExhausted

WILDCARD = "0.0.0.0"
WILDCARD6 = "::"
WILDCARDS = (WILDCARD, WILDCARD6)
EPHEMERAL_FILE = "/proc/sys/net/ipv4/ip_local_port_range"
EPHEMERAL_DEFAULT = (49153, 65535)
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
RELAYED = ("tcp", "udp")
"""Protocols that a process can pass on."""


@dataclass(frozen=True, slots=True)
class PortRequest:
    """One container port to publish on one of the host ports ``first`` to ``last`` (0 to 0: any free one).

    ``host_ip`` "" is the network's default, on every IP version that the container has.
    """

    port: int
    protocol: str
    host_ip: str
    first: int
    last: int


def parse_port(text: str) -> tuple[int, str]:
    """``80/tcp``, ``53/udp`` or ``80`` as (port, protocol); raises ``InvalidArgument``."""
    number, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in PROTOCOLS:
        raise InvalidArgument(f'invalid port specification: "{text}": unknown protocol {protocol}')
    return _number(number, text, lowest=1), protocol


def _number(text: str, whole: str, *, lowest: int = 0) -> int:
    if not (text.isascii() and text.isdigit()) or not lowest <= int(text) <= 65535:
        raise InvalidArgument(f'invalid port specification: "{whole}"')
    return int(text)


def _host_ports(text: str) -> tuple[int, int]:
    if not text:
        return 0, 0
    low, dash, high = text.partition("-")
    first = _number(low, text)
    last = _number(high, text) if dash else first
    if last < first:
        raise InvalidArgument(f'invalid port specification: "{text}": the range ends before it starts')
    return first, last


def _host_address(text: str) -> str:
    if not text:
        return ""
    try:
        return str(ip_address(text.strip("[]")))
    except ValueError:
        raise InvalidArgument(f"invalid host IP address of a published port: {text}") from None


def requests_of(request: SandboxRequest) -> list[PortRequest]:
    """Every port to publish, explicit ones first, then ``publish_all`` for exposed ports without a binding."""
    out: list[PortRequest] = []
    bound: set[tuple[int, str]] = set()
    for key, bindings in request.port_bindings.items():
        port, protocol = parse_port(key)
        bound.add((port, protocol))
        for binding in bindings or (PortBinding(),):
            first, last = _host_ports(binding.host_port)
            out.append(PortRequest(port, protocol, _host_address(binding.host_ip), first, last))
    exposed = [parse_port(key) for key in request.exposed_ports]
    if request.publish_all:
        out.extend(PortRequest(p, proto, "", 0, 0) for p, proto in exposed if (p, proto) not in bound)
    return out


def host_ips(wanted: PortRequest, default_ip: str, versions: Collection[int]) -> tuple[str, ...]:
    """The host's addresses that a port is published on, for a container that has these IP ``versions``.

    A default of 0.0.0.0 stands for :: as well.
    """
    if wanted.host_ip:
        return (wanted.host_ip,) if (6 if ":" in wanted.host_ip else 4) in versions else ()
    if default_ip in WILDCARDS:
        return tuple(ip for ip, version in zip(WILDCARDS, (4, 6), strict=True) if version in versions)
    return (default_ip,) if (6 if ":" in default_ip else 4) in versions else ()


def ephemeral_range() -> tuple[int, int]:
    """The host's range of ports that nobody asks for by number."""
    try:
        with open(EPHEMERAL_FILE, encoding="ascii") as file:
            low, high = file.read().split()
            return int(low), int(high)
    except (OSError, ValueError):
        return EPHEMERAL_DEFAULT


class _Taken(Exception):
    """A host port cannot be had; the argument is Docker's wording of why."""


class PortTable:
    """Host ports held by containers of this engine."""

    def __init__(self) -> None:
        self._holders: dict[tuple[str, int], dict[str, str]] = {}
        self._sockets: dict[str, list[socket.socket]] = {}
        self._next: int | None = None

    def reserve(
        self, owner: str, wanted: Iterable[tuple[PortRequest, tuple[str, ...]]], address: str
    ) -> tuple[Published, ...]:
        """Hold every port of ``wanted`` for endpoint ``owner`` (whose container is at ``address``), all or none.

        ``wanted`` says on which host addresses; a port has the same number on all of them. Raises ``Internal`` in
        Docker's words; the caller puts the endpoint's name in front.
        """
        out: list[Published] = []
        try:
            for request, ips in wanted:
                out.extend(self._one(owner, request, ips, address))
        except BaseException:
            self.release(owner, out)
            raise
        return tuple(out)

    def hold_again(self, owner: str, published: Published, address: str) -> str:
        """Hold a port that is in use since before a restart of the engine; "" or why another program has it now.

        The container keeps the port in either case: translation comes before any socket.
        """
        if not published.host_port or published.relayed:
            return ""
        self._note(owner, published)
        try:
            held = self._bind(published, address)
        except _Taken as error:
            return str(error)
        if held is not None:
            self._sockets.setdefault(owner, []).append(held)
        return ""

    @staticmethod
    def relays(held: Iterable[Published], requests: Iterable[PortRequest]) -> list[Published]:
        """The host's IPv6 ports that shall lead to a container without IPv6: of those held for any address.

        A request that names 0.0.0.0 means IPv4; a port that somebody has by IPv6 already is left to him.
        """
        anywhere = [r for r in requests if not r.host_ip and r.protocol in RELAYED]
        return [
            Published(WILDCARD6, port.host_port, port.port, port.protocol, relayed=True)
            for port in held
            if port.host_ip == WILDCARD
            and any(_may_be(port, request) for request in anywhere)
            and _is_free6(_KINDS[port.protocol], port.host_port)
        ]

    def release(self, owner: str, ports: Iterable[Published]) -> None:
        """Let go of all of an endpoint's ports. Idempotent."""
        for held in self._sockets.pop(owner, ()):
            held.close()
        for port in ports:
            holders = self._holders.get((port.protocol, port.host_port))
            if holders is not None and holders.get(port.host_ip) == owner:
                del holders[port.host_ip]
                if not holders:
                    del self._holders[port.protocol, port.host_port]

    def close(self) -> None:
        """Close every socket; published ports go on."""
        for sockets in self._sockets.values():
            for held in sockets:
                held.close()
        self._sockets.clear()
        self._holders.clear()

    def _one(self, owner: str, request: PortRequest, ips: tuple[str, ...], address: str) -> list[Published]:
        problem = ""
        for number in self._candidates(request):
            try:
                return self._everywhere(
                    owner, [Published(ip, number, request.port, request.protocol) for ip in ips], address
                )
            except _Taken as error:
                problem = problem or str(error)
        if request.first != request.last or not request.first:
            problem = f"Bind for {ips[0]} failed: all ports are allocated ({problem})"
        raise Internal(problem)

    def _everywhere(self, owner: str, wanted: list[Published], address: str) -> list[Published]:
        held: list[socket.socket] = []
        try:
            for published in wanted:
                if self._conflicts(published):
                    place = f"[{published.host_ip}]" if published.version == 6 else published.host_ip
                    raise _Taken(f"Bind for {place}:{published.host_port} failed: port is already allocated")
                bound = self._bind(published, address)
                if bound is not None:
                    held.append(bound)
        except BaseException:
            for taken in held:
                taken.close()
            raise
        self._sockets.setdefault(owner, []).extend(held)
        for published in wanted:
            self._note(owner, published)
        return wanted

    def _candidates(self, request: PortRequest) -> Iterator[int]:
        if request.first:
            yield from range(request.first, request.last + 1)
            return
        low, high = ephemeral_range()
        start = self._next if self._next is not None and low <= self._next <= high else low
        for number in (*range(start, high + 1), *range(low, start)):
            self._next = number + 1
            yield number

    def _conflicts(self, published: Published) -> bool:
        holders = self._holders.get((published.protocol, published.host_port))
        if not holders:
            return False
        wildcard = WILDCARDS[published.version == 6]
        same_version = any((":" in ip) == (published.version == 6) for ip in holders)
        return wildcard in holders or published.host_ip in holders or (published.host_ip == wildcard and same_version)

    def _note(self, owner: str, published: Published) -> None:
        self._holders.setdefault((published.protocol, published.host_port), {})[published.host_ip] = owner

    def _bind(self, published: Published, address: str) -> socket.socket | None:
        """A socket that holds the port; None where the kernel has none for its protocol."""
        kind = _KINDS.get(published.protocol)
        if kind is None:
            return None
        try:
            return _hold(kind, published.host_ip, published.host_port)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise ResourceExhausted(
                    f"cannot hold host port {published.host_port}: {os.strerror(error.errno)}",
                    hint="raise the engine's limit of open files (LimitNOFILE)",
                ) from error
            target = f"{published.host_ip}:{published.host_port}:{address}:{published.port}/{published.protocol}"
            cause = os.strerror(error.errno or 0).lower()
            raise _Taken(f"failed to bind host port for {target}: {cause}") from error


def _may_be(port: Published, request: PortRequest) -> bool:
    """Whether a held port can be what ``request`` asked for."""
    number = not request.first or request.first <= port.host_port <= request.last
    return number and (request.port, request.protocol) == (port.port, port.protocol)


def _is_free6(kind: int, port: int) -> bool:
    try:
        _hold(kind, WILDCARD6, port).close()
    except OSError:
        return False
    return True


def _hold(kind: int, host_ip: str, port: int) -> socket.socket:
    """A socket that keeps ``port`` from others.

    A TCP port may have connections in TIME_WAIT from its last user, so it is bound with SO_REUSEADDR as servers do;
    going through LISTEN and clearing the option makes the kernel refuse others again (inet_csk_bind_conflict).
    """
    family = socket.AF_INET6 if ":" in host_ip else socket.AF_INET
    held = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host_ip, port))
        if kind == socket.SOCK_STREAM:
            held.listen(0)
            held.shutdown(socket.SHUT_RDWR)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        held.close()
        raise
    return held
