"""Whom a client believes over TLS: extra CAs, client certificates, Docker's ``certs.d`` directories.

Rule: what cannot be used is an error that names the file; nobody falls back to less trust than was configured.
Source: Docker's "Verify repository client with certificates".
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from typing import NamedTuple

from oci.errors import FailedPrecondition

CERTIFICATE_DIRECTORIES = ("/etc/containerd/certs.d", "/etc/docker/certs.d")


class Trust(NamedTuple):
    """TLS settings: extra CA files, client certificates with their keys, or no verification at all."""

    ca: tuple[str, ...] = ()
    clients: tuple[tuple[str, str], ...] = ()
    skip_verify: bool = False

    def stamp(self) -> tuple[int, ...]:
        """Changes when one of the files is replaced."""
        paths = (*self.ca, *(path for pair in self.clients for path in pair if path))
        return tuple(os.stat(path).st_mtime_ns if os.path.exists(path) else 0 for path in paths)

    def context(self) -> ssl.SSLContext:
        """Raises ``FailedPrecondition`` naming the file that cannot be used."""
        context = ssl.create_default_context()
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        name = ""
        try:
            for name in self.ca:
                context.load_verify_locations(name)
            for name, key in self.clients:
                context.load_cert_chain(name, key or None)
        except (OSError, ssl.SSLError) as error:
            raise FailedPrecondition(f"certificate file {name}: {error}") from error
        return context


def host_directories(base: str, host: str) -> tuple[str, str]:
    """Where ``base`` may hold the settings of ``host``: its name, and the name without a colon for file systems."""
    return os.path.join(base, host), os.path.join(base, host.replace(":", "_"))


def certificates(directory: str) -> Trust:
    """Docker's layout: ``*.crt`` are CAs, ``NAME.cert`` with ``NAME.key`` client certificates."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return Trust()
    join = os.path.join
    ca = tuple(join(directory, name) for name in names if name.endswith(".crt"))
    pairs = [(name, name.removesuffix(".cert") + ".key") for name in names if name.endswith(".cert")]
    return Trust(ca, tuple((join(directory, cert), join(directory, key)) for cert, key in pairs))


def trust_of(host: str, directories: Sequence[str] = CERTIFICATE_DIRECTORIES) -> Trust:
    """The settings of the first of ``directories`` that has some for ``host`` (``name[:port]``)."""
    for base in directories:
        for directory in host_directories(base, host):
            if (found := certificates(directory)) != Trust():
                return found
    return Trust()
