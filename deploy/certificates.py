"""An authority of its own and the certificates it signs, under the file names that Docker's clients look for.

Rule: nothing that exists is overwritten unless that is asked for: a lost authority cannot be made again. Source:
Docker's page "Protect the Docker daemon socket"; RFC 5280 for the extensions.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from oci.errors import AlreadyExists, InvalidArgument

CA, CA_KEY = "ca.pem", "ca-key.pem"
SERVER, SERVER_KEY = "server-cert.pem", "server-key.pem"
CLIENT, CLIENT_KEY = "cert.pem", "key.pem"
FILES = (CA, CA_KEY, SERVER, SERVER_KEY, CLIENT, CLIENT_KEY)

Key = ec.EllipticCurvePrivateKey


def create(directory: str, hosts: Sequence[str], *, days: int = 825, force: bool = False) -> list[str]:
    """Write the six files of ``FILES`` into ``directory``; the paths written. Keys are 0600, certificates 0644.

    ``hosts`` are the names and addresses by which clients will call the engine. Raises ``InvalidArgument`` without one,
    ``AlreadyExists`` when a file is there and ``force`` is not given.
    """
    if not hosts:
        raise InvalidArgument("no host name or address for the server's certificate", hint="give --host NAME_OR_IP")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    existing = [name for name in FILES if os.path.exists(f"{directory}/{name}")]
    if existing and not force:
        raise AlreadyExists(
            f"{directory} holds {', '.join(existing)} already",
            hint="choose another directory, or replace them by --force",
        )
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _authority(authority_key, days)
    _write_pair(directory, CA, CA_KEY, authority, authority_key)
    for certificate, key_file, usage, name, names in (
        (SERVER, SERVER_KEY, ExtendedKeyUsageOID.SERVER_AUTH, hosts[0], hosts),
        (CLIENT, CLIENT_KEY, ExtendedKeyUsageOID.CLIENT_AUTH, "client", ()),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        signed = sign(authority, authority_key, key, name, usage, hosts=names, days=days)
        _write_pair(directory, certificate, key_file, signed, key)
    return [f"{directory}/{name}" for name in FILES]


def _builder(subject: str, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject[:64])]))
        .serial_number(x509.random_serial_number())
        # A client whose clock is a little behind must not refuse a certificate made just now.
        .not_valid_before(now - datetime.timedelta(days=max(1, -days + 1)))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _authority(key: Key, days: int) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Gantry certificate authority")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _builder("Gantry certificate authority", days)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )


def sign(
    authority: x509.Certificate,
    authority_key: Key,
    key: Key,
    name: str,
    usage: x509.ObjectIdentifier,
    *,
    hosts: Sequence[str] = (),
    days: int = 825,
) -> x509.Certificate:
    """A certificate for ``key``, good for one purpose (``usage``). Negative ``days`` make one that has expired."""
    builder = (
        _builder(name, days)
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(h) for h in hosts]), critical=False)
    return builder.sign(authority_key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise InvalidArgument(f"{host!r} is neither a host name nor an address: {error}") from None


def _write_pair(directory: str, certificate_file: str, key_file: str, certificate: x509.Certificate, key: Key) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(f"{directory}/{key_file}", private, 0o600)
    _write(f"{directory}/{certificate_file}", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: str, data: bytes, mode: int) -> None:
    fresh = f"{path}.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(data)
    os.rename(fresh, path)
