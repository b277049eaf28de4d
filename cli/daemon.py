"""The embedded default: start gantryd from here when nothing answers, without systemd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

from cli.errors import CommandFailed
from oci.hostpaths import HostPaths

START_SECONDS = 30


def answering(path: str) -> bool:
    """Whether something accepts connections on the unix socket ``path``."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def start(paths: HostPaths, extra: list[str]) -> bool:
    """Start gantryd unless it answers; returns once its socket accepts. Whether one was started.

    The daemon gets a session of its own and logs to ``<data_root>/gantryd.log``. Raises ``CommandFailed`` with the end
    of that log when the daemon ends instead of answering.
    """
    if answering(paths.engine_socket):
        return False
    os.makedirs(paths.data_root, mode=0o711, exist_ok=True)
    log_path = f"{paths.data_root}/gantryd.log"
    command = [
        sys.executable,
        "-m",
        "engine.main",
        "--data-root",
        paths.data_root,
        "--exec-root",
        paths.exec_root,
        *extra,
    ]
    with open(log_path, "ab") as sink:
        began = sink.tell()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True, cwd="/"
        )
    deadline = time.monotonic() + START_SECONDS
    while not answering(paths.engine_socket):
        if child.poll() is not None:
            raise CommandFailed(
                f"gantryd ended with status {child.returncode}: {_tail(log_path, began)} (log: {log_path})"
            )
        if time.monotonic() > deadline:
            raise CommandFailed(
                f"gantryd does not answer after {START_SECONDS} s: {_tail(log_path, began)} (log: {log_path})"
            )
        time.sleep(0.02)
    return True


def _tail(path: str, began: int) -> str:
    with open(path, "rb") as file:
        file.seek(began)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
