"""The engine's steps that ``oci.trace`` can follow.

Rule: imported only when tracing is on; see ``oci/trace.py``.
"""

from __future__ import annotations

import re
from typing import Any

from engine.calls import Calls
from engine.containers import launch
from engine.containers.exec import Execs
from engine.containers.exits import Exits
from engine.containers.launch import Launcher
from engine.containers.making import Maker
from engine.containers.removal import Remover
from engine.http.server import Connection
from engine.network.service import NetworkService
from engine.store import Store
from oci.trace import wrap

_VERSION = re.compile(r"^/v\d+\.\d+")
_ID = re.compile(r"[0-9a-f]{64}")


def _request(_: Connection, event: Any, _body: Any) -> str:
    path = event.target.decode("latin-1").partition("?")[0]
    return f"http {event.method.decode()} {_ID.sub('{id}', _VERSION.sub('', path))}"


def _call(_: Calls, path: str, *_others: object) -> str:
    return f"call {path.rpartition('.')[2]}"


def follow() -> None:
    """Write spans from now on."""
    wrap(Connection, "_answer", _request)
    wrap(Calls, "unary", _call)
    wrap(Store, "_write", "engine: store")
    wrap(Maker, "create", "engine: create")
    wrap(Execs, "start", "engine: exec")
    wrap(Launcher, "_launch", "engine: launch")
    wrap(launch, "build_spec", "engine: spec")
    wrap(launch, "prepare_files", "engine: files")
    wrap(NetworkService, "open_sandbox", "network: namespace")
    wrap(NetworkService, "connect", "network: connect")
    wrap(NetworkService, "close_sandbox", "network: release")
    wrap(Exits, "end", "engine: exit")
    wrap(Remover, "_take_away", "engine: removal")
