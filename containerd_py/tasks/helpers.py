"""The two helper processes of containerd-py, zygote and keeper: find them or start them.

Rule: standard library only, nothing heavy: this runs before anything else is imported (docs/internals.md, "Processes").
Helpers are started with ``posix_spawn`` in sessions of their own and outlive this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time

from oci.version import __version__

ZYGOTE = "zygote"
KEEPER = "keeper"

PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""Where the packages of this installation lie; helpers import from the same place."""

READY_SECONDS = 15.0
PING_SECONDS = 2.0

RESPAWN_SECONDS = 1.0
"""How long a helper that is not ours, or has ended, may be silent before another one is started."""

_spawned: dict[str, int] = {}


def socket_path(state: str, name: str) -> str:
    return f"{state}/{name}.sock"


def ensure(state: str, log_path: str) -> None:
    """Make sure that zygote and keeper run or are starting; ``wait_ready`` tells when they listen.

    A zygote of another version is replaced, so that new shims run the new code; a keeper is kept whatever its
    version, because it holds descriptors.
    """
    path = socket_path(state, ZYGOTE)
    answer = ask(path, {"op": "ping"}, PING_SECONDS)
    if answer is not None and answer.get("version") != __version__:
        dismiss(ZYGOTE, state)
        answer = None
    if answer is None:
        # The zygote forks the keeper where there is none, before its own imports: one interpreter start for both.
        spawn(ZYGOTE, state, log_path)
    elif ask(socket_path(state, KEEPER), {"op": "ping"}, PING_SECONDS) is None:
        spawn(KEEPER, state, log_path)


def environment() -> dict[str, str]:
    """Our environment, with which a child interpreter imports the same packages as we do."""
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{PACKAGE_ROOT}:{known}" if known else PACKAGE_ROOT}


def spawn(name: str, state: str, log_path: str) -> int:
    """Start ``python -m shim.<name> --socket <state>/<name>.sock``; standard output and error go to ``log_path``.

    Returns its pid at once: ``wait_ready`` tells when it listens.
    """
    arguments = [sys.executable, "-P", "-m", f"shim.{name}", "--socket", socket_path(state, name)]
    arguments += ["--keeper", socket_path(state, KEEPER)] if name == ZYGOTE else []
    actions = (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    )
    pid = os.posix_spawn(sys.executable, arguments, environment(), file_actions=actions, setsid=True)
    _spawned[name] = pid
    return pid


def wait_ready(name: str, state: str, log_path: str, seconds: float = READY_SECONDS) -> None:
    """Return when the helper answers; one that died meanwhile is started again. Raises ``TimeoutError``."""
    path = socket_path(state, name)
    deadline = time.monotonic() + seconds
    respawn = time.monotonic() + RESPAWN_SECONDS
    while ask(path, {"op": "ping"}, PING_SECONDS) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the {name} did not answer on {path} within {seconds:g} s; see {log_path}")
        if time.monotonic() > respawn and has_ended(_spawned.get(name, 0)):
            spawn(name, state, log_path)
            respawn = time.monotonic() + RESPAWN_SECONDS
        time.sleep(0.002)


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or only what is left of it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def ask(path: str, request: dict[str, object], seconds: float) -> dict[str, object] | None:
    """One request to the helper at ``path`` and its answer; None when nobody answers in time."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(seconds)
            peer.connect(path)
            peer.send(json.dumps(request).encode())
            answer = json.loads(peer.recv(65536) or b"null")
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def dismiss(name: str, state: str, seconds: float = 3.0) -> bool:
    """Ask the helper to end and wait for its end; its socket goes too. Returns whether it is gone."""
    path = socket_path(state, name)
    answer = ask(path, {"op": "ping"}, PING_SECONDS)
    if answer is not None:
        ask(path, {"op": "shutdown"}, seconds)
        if not _ended(answer.get("pid"), seconds):
            return False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return True


def _ended(pid: object, seconds: float) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
