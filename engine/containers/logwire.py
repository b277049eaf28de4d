"""Sockets of log drivers: unix, UDP, TCP and TLS, connected when they are needed and forgotten when they break.

Rule: nothing is sent into a connection that the other side has closed: what TCP takes then is lost without a word.
"""

from __future__ import annotations

import select
import socket
import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

from oci.errors import InvalidArgument

SECONDS = 5.0
"""How long a server may take to let us connect, or to take a packet."""


class Address(NamedTuple):
    """Where a log goes."""

    kind: str
    """``unix`` (a socket of either type), ``unixgram``, ``unixstream``, ``udp``, ``tcp`` or ``tls``."""
    host: str = ""
    port: int = 0
    path: str = ""


def parse_address(text: str, kinds: dict[str, str], port: int, what: str) -> Address:
    """``text`` (``scheme://…``) as an address; ``kinds`` maps its schemes. Raises ``InvalidArgument``."""
    try:
        url = urlsplit(text)
        kind = kinds.get(url.scheme)
        if kind is None:
            known = ", ".join(f"{scheme}://" for scheme in kinds)
            raise ValueError(f"unsupported scheme: {url.scheme!r}, expected one of {known}")
        if kind.startswith("unix"):
            if not url.path or url.netloc:
                raise ValueError("an absolute path is expected")
            return Address(kind, path=url.path)
        if url.path not in ("", "/") or url.query:
            raise ValueError("host and port are expected")
        return Address(kind, url.hostname or "127.0.0.1", url.port or port)
    except ValueError as error:
        raise InvalidArgument(f"invalid value for {what}: {text!r}: {error}") from None


class Trust(NamedTuple):
    """Files of a TLS client; empty: the machine's authorities, no certificate of our own."""

    authority: str = ""
    certificate: str = ""
    key: str = ""
    skip_verify: bool = False

    def context(self) -> ssl.SSLContext:
        """Made anew for each connection, so that renewed files count. Raises ``OSError``."""
        context = ssl.create_default_context()
        if self.authority:
            context.load_verify_locations(self.authority)
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key or None)
        if self.skip_verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


class Wire:
    """A connection to ``address``."""

    def __init__(self, address: Address, trust: Trust | None = None) -> None:
        self._address = address
        self._trust = trust or Trust()
        self._socket: socket.socket | None = None

    @property
    def is_stream(self) -> bool:
        """Whether packets run together there; known once connected."""
        return self._socket is not None and self._socket.type == socket.SOCK_STREAM

    def connect(self) -> socket.socket:
        """The socket; raises ``OSError``."""
        if self._socket is not None and self._is_closed(self._socket):
            self.close()
        if self._socket is None:
            self._socket = self._connected()
        return self._socket

    def _connected(self) -> socket.socket:
        address = self._address
        if address.kind.startswith("unix"):
            return self._connect_unix()
        if address.kind == "udp":
            family, kind, _, _, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
            made = socket.socket(family, kind)
            made.connect(target)
            return made
        made = socket.create_connection((address.host, address.port), SECONDS)
        if address.kind == "tcp":
            return made
        try:
            return self._trust.context().wrap_socket(made, server_hostname=address.host)
        except BaseException:
            made.close()
            raise

    def _connect_unix(self) -> socket.socket:
        kinds = {"unixgram": (socket.SOCK_DGRAM,), "unixstream": (socket.SOCK_STREAM,)}
        tried = kinds.get(self._address.kind, (socket.SOCK_DGRAM, socket.SOCK_STREAM))
        for kind in tried:
            made = socket.socket(socket.AF_UNIX, kind)
            try:
                made.settimeout(SECONDS)
                made.connect(self._address.path)
                return made
            except OSError:
                made.close()
                if kind == tried[-1]:
                    raise
        raise AssertionError("unreachable")

    @staticmethod
    def _is_closed(connected: socket.socket) -> bool:
        """Whether the other side has hung up. Nobody says anything here unasked: what can be read is the end."""
        if connected.type != socket.SOCK_STREAM:
            return False
        readable = select.poll()
        readable.register(connected, select.POLLIN)
        if not readable.poll(0):
            return False
        connected.settimeout(0)
        try:
            while connected.recv(4096):
                pass
            return True
        except (BlockingIOError, ssl.SSLWantReadError):
            return False  # a new session ticket
        except OSError:
            return True
        finally:
            connected.settimeout(SECONDS)

    def send(self, packets: list[bytes]) -> None:
        """All of ``packets``; raises ``OSError``, and they may have arrived in part then."""
        try:
            connected = self.connect()
            for packet in [b"".join(packets)] if self.is_stream else packets:
                connected.sendall(packet)
        except OSError:
            self.close()
            raise

    def receive(self, seconds: float) -> bytes:
        """What the server says next; raises ``OSError`` when it says nothing or hangs up."""
        connected = self._socket
        if connected is None:
            raise ConnectionError("the server hung up")
        try:
            connected.settimeout(seconds)
            data = connected.recv(4096)
            if not data:
                raise ConnectionError("the server hung up")
            connected.settimeout(SECONDS)
            return data
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def files_of(options: dict[str, str], prefix: str) -> Trust:
    """The ``…-tls-ca-cert``, ``-cert``, ``-key`` and ``-skip-verify`` options of a driver."""
    authority, certificate, key = (options.get(f"{prefix}-tls-{what}", "") for what in ("ca-cert", "cert", "key"))
    skip = options.get(f"{prefix}-tls-skip-verify", "false").lower()
    return Trust(authority, certificate, key, skip_verify=skip not in ("false", "f", "0"))
