"""The attach socket of a container: its log as a live stream out, stdin in.

Rule: a client is served from the raw log at its own pace, so a slow one blocks nobody and a new one can begin anywhere.
It sees end of file after the last byte, once init's exit record is on disk. Wire: "Attach socket" in docs/internals.md.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections import deque
from collections.abc import Iterator

from protos import attach
from protos.rawlog import Cursor, Span
from shim.logfile import LogFile
from shim.loop import READ, WRITE, Loop
from shim.pumps import InputSink

_CHUNK = 64 << 10
_MERGE = 32 << 10
_BATCH = 256


class AttachServer:
    """The listening socket at ``path`` and its clients."""

    def __init__(
        self,
        loop: Loop,
        path: str,
        log: LogFile | None,
        stdin: InputSink | None,
        *,
        stdin_once: bool,
        listener: socket.socket | None = None,
    ) -> None:
        """``listener``: one that another server has bound to ``path``, to go on with."""
        self.path = path
        self.loop, self.log, self.stdin, self.stdin_once = loop, log, stdin, stdin_once
        self.ended = False
        self._clients: set[_Client] = set()
        self._listener = listener or _listen(path)
        self._listener.setblocking(False)
        loop.watch(self._listener.fileno(), READ, self._accept)
        if stdin is not None:
            stdin.on_room.append(self._stdin_has_room)

    def fileno(self) -> int:
        """The listening descriptor."""
        return self._listener.fileno()

    def handed_over(self) -> int | None:
        """The listening descriptor; ``None`` while there are clients."""
        return None if self._clients else self.fileno()

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            peer, _ = self._listener.accept()
            peer.setblocking(False)
            self._clients.add(_Client(self, peer))

    def wake(self) -> None:
        """More of the log can be read."""
        for client in list(self._clients):
            client.push()

    def _stdin_has_room(self) -> None:
        for client in list(self._clients):
            client.watch()

    def end(self) -> None:
        """Init has ended and is on record: clients get what is left, then end of file."""
        self.ended = True
        self.wake()

    def forget(self, client: _Client) -> None:
        """A client has gone."""
        self._clients.discard(client)

    def close(self) -> None:
        """Stop serving at once and remove the socket."""
        self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        for client in list(self._clients):
            client.close()


def _listen(path: str) -> socket.socket:
    """The listening socket at ``path`` (mode 0600), in place of whatever was there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(64)
    return listener


class _Client:
    """One connection: first its request line, then the streams."""

    def __init__(self, server: AttachServer, peer: socket.socket) -> None:
        self._server, self._peer = server, peer
        self._line = bytearray()
        self._request: attach.AttachRequest | None = None
        self._cursor: Cursor | None = None
        self._spans: deque[Span] = deque()
        self._out = b""
        self._peer_ended = False
        self._sent_end = False
        self._closed = False
        self.watch()

    def watch(self) -> None:
        """Wait for what this client can do next."""
        if self._closed:
            return
        events = WRITE if self._out else 0
        stdin = self._server.stdin
        waits_for_room = not self._peer_ended and stdin is not None and stdin.full
        if not self._peer_ended and not waits_for_room:
            events |= READ
        if waits_for_room and not events:
            # epoll would report a hang-up all the time, and there may be stdin left to read.
            self._server.loop.unwatch(self._peer.fileno())
        else:
            self._server.loop.watch(self._peer.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & READ and not self._peer_ended:
            self._receive()
        elif events & ~WRITE and not self._closed:
            self.close()  # hung up both ways
            return
        if not self._closed:
            self.push()

    def _receive(self) -> None:
        try:
            data = self._peer.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self._request is None:
            data = self._handshake(data)
            if not data:
                return
        self._take_stdin(data)

    def _take_stdin(self, data: bytes) -> None:
        """Pass on what the client sent; empty is its end of file."""
        if self._request is None:
            return
        stdin = self._server.stdin if self._request.stdin else None
        if not data:
            self._peer_ended = True
            if stdin is not None and self._server.stdin_once:
                stdin.end()
            if self._sent_end:
                self.close()
        elif stdin is not None and not self._sent_end:
            stdin.feed(data)

    def _handshake(self, data: bytes) -> bytes:
        """Take the request line; gives the bytes behind it."""
        self._line += data
        line, newline, rest = bytes(self._line).partition(b"\n")
        if not data or (not newline and len(line) > attach.MAX_LINE):
            self.close()
            return b""
        if not newline:
            return b""
        try:
            request = attach.decode_request(line)
        except attach.HandshakeError as error:
            self._refuse(str(error))
            return b""
        log = self._server.log
        if log is None and (request.stdout or request.stderr):
            self._refuse("this container's output does not go to a log")
            return b""
        self._request = request
        ends = log.ends if log is not None else (0, 0)
        offsets = [end if wanted < 0 else min(wanted, end) for wanted, end in zip(request[4:], ends, strict=True)]
        if log is not None:
            self._cursor = Cursor(log.reader, *offsets)
        self._out = attach.encode_reply(attach.AttachReply(*offsets))
        return rest

    def _refuse(self, message: str) -> None:
        with contextlib.suppress(OSError):
            self._peer.send(attach.encode_error(message))
        self.close()

    def push(self) -> None:
        """Send as much as the connection takes."""
        if self._closed or self._request is None:
            return
        try:
            while True:
                if not self._out:
                    self._out = self._next_bytes()
                    if not self._out:
                        break
                sent = self._peer.send(self._out, socket.MSG_NOSIGNAL)
                self._out = self._out[sent:]
        except BlockingIOError:
            self.watch()
            return
        except OSError:
            self.close()
            return
        if self._server.ended and not self._sent_end:
            self._send_end()
        else:
            self.watch()

    def _send_end(self) -> None:
        # What the client may still send is read and dropped: closing with unread bytes would reset its end.
        self._sent_end = True
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_WR)
        if self._peer_ended:
            self.close()
        else:
            self.watch()

    def _next_bytes(self) -> bytes:
        """The next piece of the log, framed unless raw; empty when there is none now."""
        out = b""
        for span in self._pending_spans():
            piece = self._read(span)
            out = out + piece if out else piece
            if len(out) >= _MERGE:
                break
        return out

    def _pending_spans(self) -> Iterator[Span]:
        request = self._request
        if self._cursor is None or request is None:
            return
        if not self._spans:
            wanted = {1: request.stdout, 2: request.stderr}
            spans = (span for span in self._cursor.spans() if wanted[span.stream])
            self._spans.extend(itertools.islice(spans, _BATCH))
        while self._spans:
            span = self._spans.popleft()
            if span.end - span.start > _CHUNK:
                self._spans.appendleft(span._replace(start=span.start + _CHUNK))
                span = span._replace(end=span.start + _CHUNK)
            yield span

    def _read(self, span: Span) -> bytes:
        assert self._server.log is not None and self._request is not None
        data = self._server.log.reader.pread(span.stream, span.start, span.end - span.start)
        return data if self._request.raw else attach.frame_header(span.stream, len(data)) + data

    def close(self) -> None:
        """Drop the connection."""
        if not self._closed:
            self._closed = True
            self._server.loop.unwatch(self._peer.fileno())
            self._peer.close()
            self._server.forget(self)
