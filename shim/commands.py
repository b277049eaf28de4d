"""The commands of ``containerd-shim-py-v2``, as the real containerd runs them: start, delete, -info, -v.

Rule: every form of the protocol in the wild is understood. Input of ``start`` is nothing, an Any with runtime options,
or BootstrapParams (containerd 2.3); output is a plain address (1.7), JSON (2.x, told by MAX_SHIM_VERSION) or
BootstrapResult, after the form of the input.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
import sys
import time
from typing import Any

from oci import errors
from oci.hostpaths import RUNTIME_NAME
from oci.version import __version__
from protos.shim_messages import BOOTSTRAP_PARAMS, BOOTSTRAP_RESULT, DELETE_RESPONSE, RUNTIME_INFO, timestamp
from protos.wire import Values, WireError
from shim import runtimes
from shim.bundle import Bundle, ExitRecord
from shim.config import ShimConfig
from shim.exits import Children
from shim.stdio import Uris, forget_attach_socket

_GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
_SOCKET_DIRECTORY = "/run/containerd/s"
_SWITCHES = ("debug", "info", "v")
_VALUES = ("namespace", "address", "publish-binary", "id", "bundle", "socket", "socket-dir")
_USAGE = (
    "usage: containerd-shim-py-v2 -namespace NS -id ID [-address A] [-bundle DIR] [-debug] start|delete | -info | -v"
)
_SIGKILLED = 137
_FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


class _Usage(Exception):
    """The command line is wrong."""


def run(arguments: list[str]) -> int:
    """Run one command; the exit code. Errors are raised, for containerd to read on standard error."""
    try:
        flags, action = _parse(arguments)
    except _Usage as error:
        sys.stderr.write(f"{error}\n{_USAGE}\n")
        return 2
    if "v" in flags:
        _print(f"containerd-shim-py-v2:\n  Version:  {__version__}\n".encode())
    elif "info" in flags:
        _print(RUNTIME_INFO.encode(_info()))
    elif action == "start":
        _start(flags)
    elif action == "delete":
        _print(DELETE_RESPONSE.encode(_delete(flags)))
    elif action == "serve":
        return _serve(flags)
    else:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    return 0


def _info() -> Values:
    """RuntimeInfo with the default runtime's features (runtime-spec, features.md)."""
    from runc_py.features import supported_features

    features = {"type_url": _FEATURES, "value": json.dumps(supported_features()).encode()}
    return {"name": RUNTIME_NAME, "version": {"version": __version__}, "features": features}


def _parse(arguments: list[str]) -> tuple[dict[str, str], str]:
    """Flags in Go's style: one or two dashes, value behind ``=`` or as the next word."""
    flags: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            return flags, word
        name, has_value, value = word.lstrip("-").partition("=")
        if name in _SWITCHES:
            flags[name] = value or "true"
        elif name in _VALUES:
            flags[name] = value if has_value else next(words, "")
        else:
            raise _Usage(f"flag provided but not defined: -{name}")
    return flags, ""


def _print(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _read_input() -> bytes:
    """Standard input, when there is any: older containerds leave a terminal or nothing there."""
    with contextlib.suppress(OSError, ValueError):
        if not os.isatty(0):
            return sys.stdin.buffer.read(1 << 20)
    return b""


def _bootstrap_params(data: bytes, flags: dict[str, str]) -> Values | None:
    """BootstrapParams, when the input is that: an Any of options can look alike, but names no instance of ours."""
    try:
        params = BOOTSTRAP_PARAMS.decode(data)
    except WireError:
        return None
    return params if data and params["instance_id"] == flags.get("id") else None


def _start(flags: dict[str, str]) -> None:
    """Start (or, for a container of a known group, find) a shim and print where it listens."""
    params = _bootstrap_params(_read_input(), flags)
    bundle = flags.get("bundle") or os.getcwd()
    address = flags.get("address", "")
    directory = (params and params["socket_dir"]) or flags.get("socket-dir") or _SOCKET_DIRECTORY
    namespace, container_id = _required(flags, "namespace"), _required(flags, "id")
    group = _group(Bundle(bundle).spec()) or container_id
    digest = hashlib.sha256(f"{address}/{namespace}/{group}".encode()).hexdigest()
    path = f"{directory}/{digest}"
    if not _answers(path):
        ttrpc_address = os.environ.get("TTRPC_ADDRESS", "") or (params["containerd_ttrpc_address"] if params else "")
        config = ShimConfig(
            namespace, container_id, bundle, address, ttrpc_address, "", "", path, flags.get("debug") == "true"
        )
        _spawn(config)
    _print(_start_answer(f"unix://{path}", params is not None))


def _start_answer(address: str, is_bootstrap: bool) -> bytes:
    if is_bootstrap:
        return BOOTSTRAP_RESULT.encode({"version": 3, "address": address, "protocol": "ttrpc"})
    newest = os.environ.get("MAX_SHIM_VERSION", "")
    if newest.isdigit() and int(newest) >= 2:
        version = min(int(newest), 3)
        return json.dumps({"version": version, "address": address, "protocol": "ttrpc"}).encode()
    return address.encode()


def _required(flags: dict[str, str], name: str) -> str:
    if not flags.get(name):
        raise errors.InvalidArgument(f"flag -{name} is missing")
    return flags[name]


def _group(spec: dict[str, Any]) -> str:
    annotations = spec.get("annotations") or {}
    return next((str(annotations[name]) for name in _GROUP_ANNOTATIONS if annotations.get(name)), "")


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer, contextlib.suppress(OSError):
        peer.settimeout(2.0)
        peer.connect(path)
        return True
    return False


def _spawn(config: ShimConfig) -> None:
    """Start the shim in a session and interpreter of its own; returns when its socket is listening."""
    from shim import sealed
    from shim.main import listen

    listener = listen(config.socket)
    ready_read, ready_write = os.pipe()
    if os.fork() == 0:
        try:
            os.setsid()
            os.close(ready_read)
            null = os.open("/dev/null", os.O_RDWR)
            for number in (0, 1):
                os.dup2(null, number)
            for descriptor in (listener.fileno(), ready_write):
                os.set_inheritable(descriptor, True)
            sealed.execute("shim.main", _serve_arguments(config, listener.fileno(), ready_write))
            os._exit(_serve_with(config, listener))
        finally:
            os._exit(1)
    os.close(ready_write)
    listener.close()
    select.select([ready_read], [], [], 10.0)  # its end of file says that the shim runs, or has failed
    os.close(ready_read)


def _serve_arguments(config: ShimConfig, listener: int, ready: int) -> list[str]:
    return [
        *("-namespace", config.namespace, "-id", config.container_id, "-address", config.address),
        *("-bundle", config.bundle, "-socket", config.socket, *(["-debug"] if config.debug else [])),
        *("serve", str(listener), str(ready), config.ttrpc_address),
    ]


def _serve(flags: dict[str, str]) -> int:
    """The shim process itself, started by ``_spawn`` with its listening socket."""
    listener, ready, ttrpc_address = sys.argv[sys.argv.index("serve") + 1 :]
    os.close(int(ready))
    config = ShimConfig(
        flags["namespace"],
        flags["id"],
        flags["bundle"],
        flags["address"],
        ttrpc_address,
        "",
        "",
        flags["socket"],
        flags.get("debug") == "true",
    )
    return _serve_with(config, socket.socket(fileno=int(listener)))


def _serve_with(config: ShimConfig, listener: socket.socket) -> int:
    from shim import main

    os.set_inheritable(listener.fileno(), False)
    return main.serve(config, listener)


def _delete(flags: dict[str, str]) -> Values:
    """Clean up after a shim that is gone: container, mounts, descriptors' socket; what is known of its end."""
    container_id = _required(flags, "id")
    here = os.getcwd()
    path = flags.get("bundle") or (
        here if os.path.basename(here) == container_id else f"{os.path.dirname(here)}/{container_id}"
    )
    bundle = Bundle(path)
    kept = bundle.read_options()
    options = kept["options"] if kept else runtimes.no_options()
    root = runtimes.root_of(options, flags.get("address", ""), _required(flags, "namespace"))
    runtime = runtimes.runtime_for(options, root, path, _SOCKET_DIRECTORY, Children())
    runtime.delete(container_id)
    if kept:
        forget_attach_socket(Uris(*kept["uris"]))
    record = bundle.read_exit("") or ExitRecord(bundle.read_pid("init.pid"), _SIGKILLED, time.time_ns())
    return {"pid": record.pid, "exit_status": record.exit_status, "exited_at": timestamp(record.exited_at)}
