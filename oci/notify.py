"""Readiness for service managers: sd_notify(3), nothing more."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Tell the service manager ``state`` (``READY=1``, ``RELOADING=1`` …); False when none asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
    except OSError:
        return False  # readiness is advice: a manager that went away is no reason to fail
    return True
