"""The shim's side of the keeper: copies of descriptors parked there while they matter.

Rule: parking never fails an operation. Without a keeper the container runs as well, only a killed shim cannot be
replaced; a keeper that died is looked for again, and gets everything anew.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from protos import fdpass
from shim.loop import READ, Loop, report

_RETRY_SECONDS = 0.02
_SECONDS = 5.0


class Parking:
    """Descriptors of ``key`` at the keeper that listens on ``path``; an empty ``path`` means that there is none."""

    def __init__(self, loop: Loop, path: str, key: str) -> None:
        self._loop, self._path, self._key = loop, path, key
        self._peer: socket.socket | None = None
        self._reported = False
        self._retrying = False
        self.everything: Callable[[], Mapping[str, int]] = dict
        """Gives all that should be parked, for a new keeper."""

    def put(self, descriptors: Mapping[str, int]) -> None:
        """Park copies; those parked before under the same names are replaced."""
        items = list(descriptors.items())
        for at in range(0, len(items), fdpass.MAX_DESCRIPTORS):
            page = items[at : at + fdpass.MAX_DESCRIPTORS]
            message = {"op": "put", "key": self._key, "names": [name for name, _ in page]}
            self._call(message, [descriptor for _, descriptor in page])

    def take(self) -> dict[str, int]:
        """Copies of all that is parked under the key; empty when the keeper knows nothing or is gone."""
        taken: dict[str, int] = {}
        more = bool(self._path)
        while more:
            answer = self._call({"op": "get", "key": self._key, "skip": len(taken)}, [])
            if answer is None:
                break
            values, descriptors = answer
            taken.update(zip(values["names"], descriptors, strict=True))
            more = bool(values.get("more")) and bool(descriptors)
        return taken

    def drop(self, names: Iterable[str] | None = None) -> None:
        """Let the keeper close ``names``, or everything of the key."""
        message: dict[str, Any] = {"op": "drop", "key": self._key}
        if names is not None:
            message["names"] = list(names)
        self._call(message, [])

    def handed_over(self) -> int:
        """The descriptor of the connection; -1 without one."""
        return -1 if self._peer is None else self._peer.fileno()

    def take_over(self, descriptor: int) -> None:
        """Go on with the connection of another object of the same key."""
        self._peer = socket.socket(fileno=descriptor)
        self._peer.settimeout(_SECONDS)
        self._loop.watch(descriptor, READ, self._hung_up)

    def close(self) -> None:
        """Hang up; what is parked stays parked."""
        if self._peer is not None:
            self._loop.unwatch(self._peer.fileno())
            self._peer.close()
            self._peer = None

    def _call(self, message: dict[str, Any], descriptors: list[int]) -> tuple[dict[str, Any], list[int]] | None:
        if not self._path:
            return None
        try:
            return fdpass.call(self._connected(), message, descriptors)
        except (OSError, fdpass.PeerError) as error:
            self._lost(error)
            return None

    def _connected(self) -> socket.socket:
        if self._peer is None:
            self._peer = fdpass.connect(self._path, timeout=_SECONDS)
            self._loop.watch(self._peer.fileno(), READ, self._hung_up)
            self._reported = False
        return self._peer

    def _hung_up(self, _events: int) -> None:
        # The keeper speaks only when asked, and the answer is read at once: readable here means its end.
        self._lost(ConnectionError("it hung up"))

    def _lost(self, error: Exception) -> None:
        self.close()
        if not self._reported:
            self._reported = True
            report(f"the keeper at {self._path} is lost: {error}: trying again until there is one")
        if not self._retrying:
            self._retrying = True
            self._loop.call_later(_RETRY_SECONDS, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        with contextlib.suppress(OSError):
            self._connected()
        if self._peer is None:
            self._retrying = True
            self._loop.call_later(_RETRY_SECONDS, self._retry)
        else:
            self.put(self.everything())
