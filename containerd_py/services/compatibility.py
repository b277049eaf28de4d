"""Which methods of containerd's API are served: the page ``docs/containerd-api.md``.

Rule: what the page says works is what the servicers have; only remarks are written here by hand.
"""

from __future__ import annotations

import sys

from containerd_py import server  # every servicer is known once the daemon's module is
from containerd_py.metrics.rpcs import RPCS

LIMITS: dict[tuple[str, str], str] = {
    (
        "containerd.services.sandbox.v1.Controller",
        "Create",
    ): "works; one sandboxer, `shim`; the shim must have the sandbox API",
    (
        "containerd.services.tasks.v1.Tasks",
        "Checkpoint",
    ): "works where criu does; into the content store or a directory",
    (
        "containerd.services.mounts.v1.Mounts",
        "Activate",
    ): "works: `format`, `mkdir`, `mkfs`, `loop`",
    ("containerd.services.mounts.v1.Mounts", "Update"): "works: labels (containerd's answers UNIMPLEMENTED)",
    ("containerd.services.tasks.v1.Tasks", "Create"): "works; of a checkpoint where criu does",
    ("containerd.services.tasks.v1.Tasks", "Metrics"): "works; filters: `id==ID`",
    ("containerd.services.transfer.v1.Transfer", "Transfer"): "works: pull, push, tag, import, export",
}
"""Remarks on methods that are served."""

HEAD = """# containerd's API

Made from the servicers by `python -m containerd_py.services.compatibility`; a test keeps it current.

`containerd-py` serves these methods of containerd's gRPC API (services of version 1) on its socket, and on TCP where
`--tcp-address` says so: all that containerd 2.2 has. A method without a remark works in full. Errors have containerd's
status codes.
"""


def services() -> dict[str, list[str]]:
    """Names of the methods that are served, by service."""
    found: dict[str, list[str]] = {}
    for method in RPCS.started:
        found.setdefault(method.service, []).append(method.name)
    return {service: sorted(names) for service, names in sorted(found.items())}


def page() -> str:
    """The document."""
    parts = [HEAD]
    for service, names in services().items():
        rows = "\n".join(f"| {name} | {LIMITS.get((service, name), 'works')} |" for name in names)
        parts.append(f"## {service}\n\n| method | |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    del server
    sys.stdout.write(page())
