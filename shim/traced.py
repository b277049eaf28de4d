"""The steps of zygote, shim and our runtime that ``oci.trace`` can follow.

Rule: imported only when tracing is on; see ``oci/trace.py``. The runtime knows nothing of tracing: it is wrapped here.
"""

from __future__ import annotations

from oci.trace import wrap
from protos.wire import Values
from runc_py import create, init, lifecycle, rootfs
from runc_py.cgroups.v1 import LegacyManager
from runc_py.cgroups.v2 import UnifiedManager
from runc_py.create import Creation
from runc_py.state import ContainerState
from shim import main, runtimes
from shim.apart import Kept
from shim.bundle import Bundle
from shim.container import Container
from shim.parking import Parking
from shim.publisher import Publisher
from shim.service import TaskService
from shim.worker import Worker


def _called(_: TaskService, method: str, _request: Values) -> str:
    return f"shim: {method}"


def follow(zygote: type) -> None:
    """Write spans from now on, in every process forked from this one; ``zygote`` is the server's class."""
    wrap(zygote, "_start", "zygote: shim forked")
    wrap(main, "listen", "zygote: socket")
    wrap(TaskService, "call", _called)
    wrap(runtimes, "apart", "shim: fork of the runtime")
    wrap(runtimes, "apart_kept", "shim: fork of the runtime")
    wrap(Worker, "give", "shim: worker of the runtime")
    wrap(Kept, "ask", "shim: fork asked again")
    wrap(Container, "_conclude", "shim: exit concluded")
    wrap(Bundle, "write_exit", "shim: exit record")
    wrap(Publisher, "publish", "shim: event")
    wrap(Parking, "put", "shim: parking")
    wrap(create, "compile_seccomp", "runtime: seccomp")
    wrap(Creation, "run", "runtime: create")
    wrap(Creation, "_make_cgroup", "runtime: cgroups made")
    wrap(Creation, "_clone", "runtime: clone")
    wrap(Creation, "_converse", "runtime: init awaited")
    wrap(rootfs, "plan_rootfs", "runtime: plan")
    wrap(ContainerState, "save", "runtime: state")
    for manager in (LegacyManager, UnifiedManager):
        wrap(manager, "set", "runtime: limits")
        wrap(manager, "destroy", "runtime: cgroups removed")
    wrap(LegacyManager, "enter", "init: cgroups entered")
    wrap(rootfs, "mount_rootfs", "init: root mounted")
    wrap(rootfs, "change_root", "init: root changed")
    wrap(init, "_enter_namespaces", "init: namespaces")
    wrap(init, "_run_operations", "init: mounts")
    wrap(init, "_set_up", "init: set up")
    wrap(lifecycle, "start_container", "runtime: start")
    wrap(lifecycle, "delete_container", "runtime: delete")
