"""What the engine tells the DNS server, and the files that outlive both.

``<directory>/<container id>.json`` holds one record each (``table.decode``); the engine replaces them whole. The socket
``<directory>/control.sock`` (SOCK_SEQPACKET) takes one JSON object a packet and gives one answer each, in order:

    {"op": "ping"}                    {"pid": N, "version": "…"}
    {"op": "put", "id": ID}           {} once the server listens for ID and knows its file's content
    {"op": "drop", "id": ID}          {} once nothing holds the container's namespace
    {"op": "sync"}                    {} once records and files are the same
    {"op": "statistics"}              {"containers": N, …}
    {"op": "shutdown"}                {} and the end

Rule: the files are the truth. A server that starts serves what they say before anybody talks to it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from engine.network.dns import table
from engine.network.dns.loop import READ, Loop
from engine.network.dns.server import Server
from oci.version import __version__

PROTOCOL = 4
VERSION = f"{__version__}/{PROTOCOL}"
SUFFIX = ".json"
PACKET = 1 << 16


def record_path(directory: str, container_id: str) -> str:
    """Where a container's record is."""
    return f"{directory}/{container_id}{SUFFIX}"


def socket_path(directory: str) -> str:
    """Where the server listens for the engine."""
    return f"{directory}/control.sock"


class Control:
    """The engine's side of a server."""

    def __init__(self, loop: Loop, server: Server, directory: str) -> None:
        self._loop = loop
        self._server = server
        self._directory = directory

    def listen(self) -> None:
        """Take the socket's path; whoever had it is gone (``main`` holds the lock)."""
        path = socket_path(self._directory)
        if os.path.exists(path):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        listener.bind(path)
        listener.listen(8)
        self._loop.watch(listener, READ, lambda: self._accept(listener))

    def sync(self) -> dict[str, Any]:
        """Serve what the files say, all of it and nothing else."""
        wanted = {n.removesuffix(SUFFIX) for n in os.listdir(self._directory) if n.endswith(SUFFIX)}
        for container_id in self._server.table.ids():
            if container_id not in wanted:
                self._server.drop(container_id)
        for container_id in sorted(wanted):
            try:
                self._put(container_id)
            except (OSError, ValueError, KeyError, TypeError) as error:
                sys.stderr.write(f"record of {container_id} is of no use: {error!r}\n")
                sys.stderr.flush()
        return {}

    def _put(self, container_id: str) -> None:
        with open(record_path(self._directory, container_id), "rb") as file:
            self._server.put(table.decode(json.load(file)))

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        client.setblocking(False)
        self._loop.watch(client, READ, lambda: self._serve(client))

    def _serve(self, client: socket.socket) -> None:
        try:
            packet = client.recv(PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._loop.forget(client)
            return
        try:
            answer = self._answer(json.loads(packet))
        except (OSError, ValueError, KeyError, TypeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        try:
            client.send(json.dumps(answer).encode())
        except OSError:
            self._loop.forget(client)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["op"]:
            case "ping":
                return {"pid": os.getpid(), "version": VERSION}
            case "put":
                self._put(str(request["id"]))
            case "drop":
                self._server.drop(str(request["id"]))
            case "sync":
                return self.sync()
            case "statistics":
                return dict(self._server.statistics())
            case "shutdown":
                self._loop.stop()
            case other:
                raise ValueError(f"no operation {other!r}")
        return {}
