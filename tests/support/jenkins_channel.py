"""The remoting channel of Jenkins' docker plugin, as it speaks to an engine, run inside a private host.

``python -m tests.support.jenkins_channel ADDRESS CA CERT KEY EXEC_ID SECONDS``: starts the exec with a request written
by hand (bare line feeds, a newline too many), then sends random pieces with idle gaps for so long and expects each
back in stdout frames. Prints how many bytes came back; any other end is an error.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
import sys
import time

STDOUT = 1
GAPS = (0.0, 0.0, 0.05, 0.3, 1.0)
BODY = b'{"Detach":false,"Tty":false}'


def connect(address: str, ca: str, certificate: str, key: str) -> ssl.SSLSocket:
    """A TLS connection that is verified both ways."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, key)
    return context.wrap_socket(socket.create_connection((host, int(port)), 10), server_hostname=host)


def upgrade(channel: ssl.SSLSocket, exec_id: str) -> bytes:
    """Start the exec; what was read past the answer's head."""
    lines = (f"POST /v1.41/exec/{exec_id}/start HTTP/1.1", "Host: engine", "Content-Type: application/json")
    more = ("Upgrade: tcp", "Connection: Upgrade", f"Content-Length: {len(BODY)}", "", "")
    channel.sendall("\n".join((*lines, *more)).encode() + BODY + b"\n")
    head = b""
    while b"\r\n\r\n" not in head:
        data = channel.recv(4096)
        assert data, f"the engine closed the connection: {head!r}"
        head += data
    assert head.startswith(b"HTTP/1.1 101 "), head
    return head.partition(b"\r\n\r\n")[2]


class Frames:
    """Payload of the stdout frames that a channel brings."""

    def __init__(self, channel: ssl.SSLSocket, early: bytes) -> None:
        self._channel, self._buffer = channel, early

    def exactly(self, count: int) -> bytes:
        """The next ``count`` bytes of payload."""
        payload = b""
        while len(payload) < count:
            payload += self.frame()
        assert len(payload) == count, f"{len(payload)} bytes instead of {count}"
        return payload

    def frame(self) -> bytes:
        """One frame's payload; empty at the end of the stream."""
        head = self._raw(8)
        if not head:
            return b""
        assert head[0] == STDOUT, f"a frame of kind {head!r}"
        assert head[1:4] == b"\0\0\0", f"a frame of kind {head!r}"
        return self._raw(int.from_bytes(head[4:], "big"))

    def _raw(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self._channel.recv(1 << 16)
            if not data:
                assert not self._buffer, "the stream ended inside a frame"
                return b""
            self._buffer += data
        raw, self._buffer = self._buffer[:count], self._buffer[count:]
        return raw


def main() -> None:
    address, ca, certificate, key, exec_id, seconds = sys.argv[1:]
    channel = connect(address, ca, certificate, key)
    channel.settimeout(60)
    frames = Frames(channel, upgrade(channel, exec_id))
    until, total = time.monotonic() + float(seconds), 0
    while time.monotonic() < until:
        piece = os.urandom(random.choice((1, 10, 1000, 65536, 300_000)))
        channel.sendall(piece)
        assert frames.exactly(len(piece)) == piece, f"changed bytes after {total}"
        total += len(piece)
        time.sleep(random.choice((*GAPS, float(seconds) / 8)))
    channel.close()
    sys.stdout.write(f"{total}\n")


if __name__ == "__main__":
    main()
