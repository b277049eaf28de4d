"""A listener to an engine's events while it is killed again and again, and what is wrong with their order.

Rule: a connection that breaks loses events, so only what one connection brought is compared; within it nothing may be
missing, told twice or told too late.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

PAUSE = 0.05
FOLLOWERS = {
    "create": {"start", "destroy"},
    "start": {"die"},
    "die": {"start", "destroy"},
    "destroy": frozenset[str](),
}
"""What may be told next of a container; everything else that happens to it has no place of its own."""

Event = dict[str, Any]


class Listener:
    """Hears the engine at ``path`` in a thread of its own, until ``end``. ``heard`` has the events by connection."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._over = threading.Event()
        self._peer: socket.socket | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self.heard: list[list[Event]] = []

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def end(self) -> None:
        """Hang up."""
        self._over.set()
        with contextlib.suppress(OSError, AttributeError):
            self._peer.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]  # None is suppressed
        self._thread.join()

    def _listen(self) -> None:
        while not self._over.is_set():
            self.heard.append([])
            with contextlib.suppress(OSError):
                self.heard[-1].extend(self._events())
            self._over.wait(PAUSE)

    def _events(self) -> Iterator[Event]:
        with socket.socket(socket.AF_UNIX) as self._peer:
            self._peer.connect(self._path)
            self._peer.sendall(b"GET /v1.41/events HTTP/1.0\r\nHost: engine\r\n\r\n")
            with self._peer.makefile("rb") as answer:
                for line in answer:
                    if line.startswith(b"{") and line.endswith(b"}\n"):
                        yield json.loads(line)


def disorder(heard: Sequence[Event]) -> list[str]:
    """What is wrong with the events of one connection."""
    wrong: list[str] = []
    last: dict[str, str] = {}
    before = 0
    for event in heard:
        if event["timeNano"] < before:
            wrong.append(f"{event['Action']} of {event['Actor']['ID'][:12]} is older than what was told before it")
        before = event["timeNano"]
        if event["Type"] == "container" and (action := event["Action"]) in FOLLOWERS:
            ident = event["Actor"]["ID"]
            if ident in last and action not in FOLLOWERS[last[ident]]:
                wrong.append(f"{action} of {ident[:12]} comes after its {last[ident]}")
            last[ident] = action
    return wrong
