"""A small client of the Docker API for measuring: one connection, no program of its own to start.

Rule: what is measured is the engine, so a request costs the client as little as can be.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from tests.bench.peers import Peer


class Client(http.client.HTTPConnection):
    """A connection to a peer's unix socket, from outside of its host; it is opened again when the engine closes it."""

    def __init__(self, peer: Peer) -> None:
        super().__init__("engine", timeout=300)
        self._path = f"/proc/{peer.host.pid}/root{peer.url.removeprefix('unix://')}"

    def connect(self) -> None:
        """Connect (``http.client`` calls this where it is needed)."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The decoded answer (None for none). A status of 400 and above raises ``AssertionError``."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        self.request(method, path, data, headers)
        answer = self.getresponse()
        text = answer.read()
        assert answer.status < 400, f"{method} {path}: {answer.status} {text.decode(errors='replace')}"
        return json.loads(text) if text else None


def life(client: Client, network: str = "bridge", image: str = "busybox") -> None:
    """Create, start, wait for and remove one container, as four requests."""
    made = client.call("POST", "/containers/create", asked(network, image))
    client.call("POST", f"/containers/{made['Id']}/start")
    client.call("POST", f"/containers/{made['Id']}/wait")
    client.call("DELETE", f"/containers/{made['Id']}")


def asked(network: str = "bridge", image: str = "busybox", *command: str) -> dict[str, Any]:
    """The body of a create request."""
    return {"Image": image, "Cmd": list(command or ("true",)), "HostConfig": {"NetworkMode": network}}
