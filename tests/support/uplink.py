"""The way from a private host to the distribution's packages: an HTTP proxy that listens inside and fetches outside.

Rule: it serves the archives that this machine's apt knows, and nothing else; what was fetched is fetched once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.support.host import PrivateHost

PORT = 3142
ADDRESS = f"http://127.0.0.1:{PORT}"
SECONDS = 30
_CLONE_NEWNET = 0x40000000


class ProxiedHost(PrivateHost):
    """A private host whose programs find ``ADDRESS``; ``packages`` must be running for it to answer."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "http_proxy": ADDRESS, "no_proxy": "127.0.0.1,localhost"}


def missing() -> str:
    """Why no packages can be had here; "" when they can."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return "needs apt-get and dpkg-deb"
    wanted = _release_files()
    try:
        with urllib.request.urlopen(wanted[0], timeout=SECONDS) as answer:
            answer.read()
    except (OSError, IndexError) as error:
        return f"no packages: {error}"
    return ""


def _release_files() -> list[str]:
    """Addresses that the sources of this machine begin with."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)/dists/$(RELEASE)/InRelease", "Created-By: Packages"]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [line for line in dict.fromkeys(text.splitlines()) if line.startswith("http://") and "/debian/" in line]


@contextlib.contextmanager
def packages(host: PrivateHost) -> Iterator[None]:
    """The proxy, at ``ADDRESS`` inside ``host``."""
    known: dict[str, tuple[int, bytes]] = {}
    hosts = {urlsplit(url).netloc for url in _release_files()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if urlsplit(self.path).netloc not in hosts:
                self.send_error(403)
                return
            if self.path not in known:
                known[self.path] = _fetched(self.path)
            status, body = known[self.path]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def server_bind(self) -> None:
            self.socket.close()
            self.socket = _socket_inside(host)
            super().server_bind()

    with Server(("127.0.0.1", PORT), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _fetched(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return 200, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 502, b""


def _socket_inside(host: PrivateHost) -> socket.socket:
    """A socket of ``host``'s network: a thread goes there to make it, and ends."""
    made: list[socket.socket] = []

    def work() -> None:
        descriptor = os.open(f"/proc/{host.pid}/ns/net", os.O_RDONLY)
        assert ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) == 0
        os.close(descriptor)
        made.append(socket.socket())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]
