"""The systemd driver: a transient scope made over D-Bus, then the same files as cgroupfs.

Rule: without a running systemd there is a clear error, never a silent fall-back to cgroupfs.
"""

from __future__ import annotations

import os
from typing import Any

from runc_py.cgroups.base import CgroupError, CgroupManager


def systemd_manager(cgroups_path: str, container_id: str) -> CgroupManager:
    """Refused for now: scopes are not built. The message says what to use instead."""
    if not os.path.isdir("/run/systemd/system"):
        raise CgroupError("the systemd cgroup driver needs a running systemd: use the cgroupfs driver on this host")
    raise CgroupError(
        f"the systemd cgroup driver is not built (asked for container {container_id}, cgroupsPath {cgroups_path!r}): "
        "use the cgroupfs driver"
    )


def load_systemd(saved: dict[str, Any]) -> CgroupManager:
    """Refused: this runtime never saved such a state."""
    raise CgroupError(f"the systemd cgroup driver is not built: cannot load a manager of kind {saved.get('kind')}")
