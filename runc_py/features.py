"""What ``features`` prints: the runtime's abilities in the form of the runtime spec's ``features.md``.

Rule: the lists are the tables that the code itself uses, never a copy of them.
"""

from __future__ import annotations

import shutil

from runc_py import capabilities, libseccomp, mount_options, namespaces, scheduling
from runc_py.light import TYPE_CHECKING
from runc_py.main import SPEC_VERSION
from runc_py.seccomp import FLAGS

if TYPE_CHECKING:
    from typing import Any


def supported_features() -> dict[str, Any]:
    """The features document."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mount_options.known_options(),
        "linux": {
            "namespaces": sorted(namespaces.FLAGS),
            "capabilities": [f"CAP_{name}" for name in capabilities.NAMES],
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": sorted(libseccomp.ACTIONS),
                "operators": sorted(libseccomp.COMPARISONS),
                "archs": sorted(libseccomp.AUDIT_ARCHES),
                "knownFlags": sorted(FLAGS),
                "supportedFlags": sorted(FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": True, "schemata": True},
            "memoryPolicy": {"modes": sorted(scheduling.MEMORY_MODES), "flags": sorted(scheduling.MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
        "annotations": {"org.opencontainers.runc.checkpoint.enabled": str(bool(shutil.which("criu"))).lower()},
    }
