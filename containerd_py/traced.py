"""The supervisor's steps that ``oci.trace`` can follow.

Rule: imported only when tracing is on; see ``oci/trace.py``.
"""

from __future__ import annotations

from containerd_py.metadata.database import Database
from containerd_py.services.calls import Calls
from containerd_py.snapshots.base import DirectorySnapshotter
from containerd_py.tasks.bundle import Bundle
from containerd_py.tasks.launcher import Zygote
from containerd_py.tasks.recovery import Recovery
from containerd_py.tasks.shim_client import ShimClient
from oci.trace import wrap
from protos import ttrpc


def _served(_: Calls, _wire: object, _stream: int, request: ttrpc.Request) -> str:
    return f"serve {request.service.rpartition('.')[2]}/{request.method}"


def _asked(_: ShimClient, method: str, *_others: object, **_options: object) -> str:
    return f"ttrpc {method}"


def follow() -> None:
    """Write spans from now on."""
    wrap(Calls, "_answer", _served)
    wrap(ShimClient, "call", _asked)
    wrap(Zygote, "start", "supervisor: zygote asked")
    wrap(Database, "flush", "supervisor: database flushed")
    wrap(DirectorySnapshotter, "prepare", "supervisor: snapshot made")
    wrap(DirectorySnapshotter, "remove", "supervisor: snapshot removed")
    wrap(Bundle, "create", "supervisor: bundle made")
    wrap(Bundle, "remove", "supervisor: bundle removed")
    wrap(Recovery, "shut_down", "supervisor: shim shut down")
