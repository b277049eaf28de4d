"""The gRPC API over TCP, as containerd's ``grpc.tcp_address``, ``tcp_tls_cert``, ``tcp_tls_key`` and ``tcp_tls_ca``.

Rule: whoever may call this API owns the host. Beyond this machine only clients with a certificate of our authority are
let in, unless somebody said by name that the network is theirs.

The checks are made before the helpers are started: grpc is imported later, with the port.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from containerd_py.settings import Tcp
from oci.errors import FailedPrecondition, InvalidArgument, PermissionDenied

if TYPE_CHECKING:
    import grpc


def check(tcp: Tcp) -> None:
    """Refuse what cannot work or should not be. Raises ``InvalidArgument``, ``PermissionDenied``."""
    host, separator, port = tcp.address.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(f"TCP address {tcp.address!r} is not HOST:PORT")
    if bool(tcp.certificate) != bool(tcp.key):
        raise InvalidArgument("TLS needs a certificate and its key", hint="give --tls-cert and --tls-key")
    if tcp.authority and not tcp.certificate:
        raise InvalidArgument("--tls-ca without a certificate of our own", hint="give --tls-cert and --tls-key")
    if tcp.insecure or is_loopback(host) or tcp.authority:
        return
    why = "without asking clients for a certificate" if tcp.certificate else "without TLS"
    raise PermissionDenied(
        f"refusing to listen on {tcp.address} {why}: whoever reaches the port owns this host",
        hint="give --tls-cert, --tls-key and --tls-ca ('gantry certs init' makes them), listen on 127.0.0.1, or say"
        " --insecure-tcp if the network is truly yours",
    )


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine alone; "" means every address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def add_port(server: grpc.aio.Server, tcp: Tcp) -> None:
    """Listen once ``server`` starts. Raises ``FailedPrecondition`` when the address cannot be had."""
    try:
        if tcp.certificate:
            server.add_secure_port(tcp.address, _credentials(tcp))
        else:
            server.add_insecure_port(tcp.address)
    except (OSError, RuntimeError) as error:
        raise FailedPrecondition(f"cannot listen on {tcp.address}: {error}") from error


def check_files(tcp: Tcp) -> None:
    """Raises ``FailedPrecondition`` for files that cannot be used: grpc would tell the first client, not us."""
    if not tcp.certificate:
        return
    import ssl

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tcp.certificate, tcp.key)
        if tcp.authority:
            context.load_verify_locations(tcp.authority)
    except OSError as error:
        files = ", ".join(filter(None, (tcp.certificate, tcp.key, tcp.authority)))
        raise FailedPrecondition(f"cannot use the TLS files {files}: {error}") from error


def _credentials(tcp: Tcp) -> grpc.ServerCredentials:
    import grpc

    authority = _read(tcp.authority) if tcp.authority else None
    pair = _read(tcp.key), _read(tcp.certificate)
    return grpc.ssl_server_credentials([pair], authority, authority is not None)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
