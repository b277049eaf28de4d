"""Where the bundles of sandboxes lie.

Rule: in a directory of their own (containerd's ``io.containerd.sandbox.controller.v1.shim``), and so do the sockets of
our shims: a sandbox may be called like a task.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from containerd_py.tasks.bundle import Bundle, check_identifier

STATE = "io.containerd.sandbox.controller.v1.shim"
SOCKETS = "b"


class SandboxBundles(NamedTuple):
    """The bundles of sandboxes below one state directory."""

    state: str

    def bundle(self, namespace: str, id: str) -> Bundle:
        """Raises ``InvalidArgument`` for names that are no identifiers (they become paths)."""
        check_identifier("namespace", namespace)
        check_identifier("sandbox id", id)
        return Bundle(f"{self.state}/{STATE}/{namespace}/{id}", namespace, id)

    def socket(self, bundle: Bundle) -> str:
        """Where the sandbox's shim listens, if it is ours."""
        digest = hashlib.sha256(f"{bundle.namespace}/{bundle.id}".encode()).hexdigest()
        return f"{self.state}/{SOCKETS}/{digest[:32]}"

    def scan(self) -> Iterator[Bundle]:
        """Every bundle there is; what was being removed goes on the way."""
        top = f"{self.state}/{STATE}"
        for namespace in _names(top):
            for name in _names(f"{top}/{namespace}"):
                id = name.removeprefix(".")
                bundle = Bundle(f"{top}/{namespace}/{id}", namespace, id)
                if name == id:
                    yield bundle
                elif not os.path.lexists(bundle.path):
                    bundle.remove()


def _names(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
