"""What a process imports once, so that those it forks make, enter and end containers without importing anything.

Rule: the way of a container on this host, and no more: the cgroup version that rules here, not the other.
"""

from __future__ import annotations

from runc_py import console, create, execute, hooks, init, lifecycle, prepare, reaper, seccomp, sockets, waiting
from runc_py.cgroups import CgroupError, layout

__all__ = ["console", "create", "execute", "hooks", "init", "layout", "lifecycle", "prepare", "reaper", "seccomp"]
__all__ += ["sockets", "waiting"]

try:
    if layout.current().unified:
        from runc_py.cgroups import v2, v2_limits

        __all__ += ["v2", "v2_limits"]
    else:
        from runc_py.cgroups import v1, v1_limits

        __all__ += ["v1", "v1_limits"]
except CgroupError:
    pass  # a host without cgroups: containers say so when they need one
