"""Registries inside a private host: one plain on loopback, one with TLS, a CA of its own and a password elsewhere.

Rule: both serve the same storage, so that what goes in at one can come out at the other; every client of the host
(docker, podman, skopeo, ours) finds the CA in Docker's ``certs.d``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.certificates import Authority
from tests.support.host import PrivateHost
from tests.support.registry import HTPASSWD, running_registry

PLAIN = "127.0.0.1:5000"
ADDRESS = "10.99.0.1"
SECURE = f"{ADDRESS}:5001"


class Site(NamedTuple):
    """The two registries of ``host`` and the program that looks at them from outside of any engine."""

    host: PrivateHost
    base: Path
    authority: Authority
    plain: str = PLAIN
    secure: str = SECURE

    def skopeo(self, *arguments: str) -> str:
        """Run skopeo inside the host; its standard output."""
        return self.host.check("skopeo", *arguments)

    def raw(self, reference: str) -> bytes:
        """The manifest or index that a name of the plain registry points at."""
        return self.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{reference}").encode()

    def inspect(self, reference: str) -> dict[str, Any]:
        """What skopeo says of a name in the plain registry."""
        found: dict[str, Any] = json.loads(self.skopeo("inspect", "--tls-verify=false", f"docker://{reference}"))
        return found


@contextlib.contextmanager
def site(host: PrivateHost, storage: Path | None = None, authority: Authority | None = None) -> Iterator[Site]:
    """Both registries for one block; ``storage`` and ``authority`` may be those of another host's."""
    base = host.base / "registries"
    base.mkdir()
    authority = authority or Authority(base / "ca")
    pair = authority.server(ADDRESS)
    (base / "htpasswd").write_text(HTPASSWD)
    trusted = base / "docker"
    (trusted / "certs.d" / SECURE).mkdir(parents=True)
    shutil.copy(authority.ca, trusted / "certs.d" / SECURE / "ca.crt")
    storage = storage or base / "storage"
    host.check("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    host.check("mkdir", "-p", "/etc/docker")
    host.check("mount", "--bind", str(trusted), "/etc/docker")
    try:
        with (
            running_registry(base / "plain", host=host, address=PLAIN, storage=storage),
            running_registry(
                base / "secure", host=host, address=SECURE, storage=storage, tls=pair, htpasswd=base / "htpasswd"
            ),
        ):
            yield Site(host, base, authority)
    finally:
        host.check("umount", "/etc/docker")
        host.check("ip", "address", "del", f"{ADDRESS}/32", "dev", "lo")
