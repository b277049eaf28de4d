"""Where Gantry keeps things on a host: one table, so that clients and daemons agree.

Root uses ``/var/lib/gantry`` and ``/run/gantry``; anybody else the XDG base directories.
"""

from __future__ import annotations

import os
from typing import NamedTuple

RUNTIME_NAME = "io.containerd.py.v2"
"""The runtime name of our shim, in containerd's ``io.containerd.NAME.vN`` form."""

ENGINE_NAMESPACE = "moby"
"""The containerd namespace that holds the engine's objects, as dockerd names it."""

SNAPSHOTTER = "overlayfs"


class HostPaths(NamedTuple):
    """The two directories everything is derived from."""

    data_root: str
    exec_root: str

    @property
    def engine_socket(self) -> str:
        return f"{self.exec_root}/gantry.sock"

    @property
    def engine_pidfile(self) -> str:
        return f"{self.exec_root}/gantryd.pid"

    @property
    def containerd_root(self) -> str:
        return f"{self.data_root}/containerd"

    @property
    def containerd_state(self) -> str:
        return f"{self.exec_root}/containerd"

    @property
    def containerd_address(self) -> str:
        return f"{self.exec_root}/containerd/containerd.sock"


def default_paths() -> HostPaths:
    """The paths of this user: system directories for root, XDG directories otherwise."""
    if os.geteuid() == 0:
        return HostPaths("/var/lib/gantry", "/run/gantry")
    home = os.path.expanduser("~")
    data = os.environ.get("XDG_DATA_HOME") or f"{home}/.local/share"
    run = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return HostPaths(f"{data}/gantry", f"{run}/gantry")
