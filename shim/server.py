"""The shim's ttrpc server: connections in, calls to the service, answers out.

Rule: a connection's calls are answered as they finish, not in order (Wait may take for ever), and a peer that is gone
loses only its answers.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import NamedTuple, Protocol

from oci.errors import Code
from protos import ttrpc
from protos.shim_messages import Method
from protos.wire import Values, WireError
from shim.loop import READ, WRITE, Loop, report


class Deferred:
    """An answer that comes later: ``resolve`` it once."""

    __slots__ = ("_callback", "_value")

    def __init__(self) -> None:
        self._callback: Callable[[Values], None] | None = None
        self._value: Values | None = None

    def resolve(self, value: Values) -> None:
        """Give the answer."""
        self._value = value
        if self._callback is not None:
            self._callback(value)

    def then(self, callback: Callable[[Values], None]) -> None:
        """Call ``callback`` with the answer, at once if it is there."""
        self._callback = callback
        if self._value is not None:
            callback(self._value)


class Failure(Exception):
    """What a call is answered with when it fails: a canonical code and a message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Service(Protocol):
    """What the server calls."""

    def call(self, method: str, request: Values) -> Values | Deferred:
        """Answer a call of a method in ``methods``. Raises ``Failure``."""

    methods: dict[str, Method]
    """All that can be called so far, by name."""

    def offered(self, service: str) -> dict[str, Method]:
        """The methods of ``service``; none of one that is not offered."""


class Unanswered(NamedTuple):
    """A call whose answer comes later."""

    stream_id: int
    method: str
    request: Values


class Server:
    """Accepts on ``listener`` until closed."""

    def __init__(self, loop: Loop, listener: socket.socket, service: Service) -> None:
        self.loop, self.service = loop, service
        self._listener = listener
        self._connections: set[_Connection] = set()
        listener.setblocking(False)
        loop.watch(listener.fileno(), READ, self._accept)

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            peer, _ = self._listener.accept()
            peer.setblocking(False)
            self._connections.add(_Connection(self, peer))

    def forget(self, connection: _Connection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)

    def fileno(self) -> int:
        """The listening descriptor."""
        return self._listener.fileno()

    def handed_over(self) -> list[tuple[int, list[Unanswered]]] | None:
        """Every connection's descriptor and the calls it waits for; ``None`` when one is in the middle of something."""
        connections = list(self._connections)
        if any(connection.busy for connection in connections):
            return None
        return [(connection.fileno(), list(connection.unanswered.values())) for connection in connections]

    def take_over(self, descriptor: int, unanswered: list[Unanswered]) -> None:
        """Go on with a connection of another server, and with the calls that it had not answered."""
        peer = socket.socket(fileno=descriptor)
        peer.setblocking(False)
        connection = _Connection(self, peer)
        self._connections.add(connection)
        for call in unanswered:
            connection.answer(call)

    def flush(self) -> bool:
        """Whether every answer is on its way."""
        return not any(connection.unsent for connection in self._connections)

    def close(self) -> None:
        """Stop accepting and drop all connections."""
        self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections):
            connection.close()


class _Connection:
    def __init__(self, server: Server, peer: socket.socket) -> None:
        self._server, self._peer = server, peer
        self._decoder = ttrpc.Decoder()
        self._out = bytearray()
        self._closed = False
        self._writing = False
        self.unanswered: dict[int, Unanswered] = {}
        """Calls whose answer is deferred."""
        server.loop.watch(peer.fileno(), READ, self._ready)

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._peer.fileno()

    @property
    def busy(self) -> bool:
        """Whether a request has come in part, or an answer has not gone whole."""
        return bool(self._out or self._decoder.pending)

    @property
    def unsent(self) -> int:
        """Bytes of answers that the peer has not taken yet."""
        return len(self._out)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._send(b"")
        if events & ~WRITE and not self._closed:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._peer.recv(64 << 10)
            frames = self._decoder.feed(data)
        except BlockingIOError:
            return
        except (OSError, ttrpc.ProtocolError):
            self.close()
            return
        if not data:
            self.close()
            return
        for frame in frames:
            if frame.kind == ttrpc.REQUEST:
                self._serve(frame)

    def _serve(self, frame: ttrpc.Frame) -> None:
        try:
            request = ttrpc.decode_request(frame)
            method = self._server.service.offered(request.service).get(request.method)
            if method is None:
                message = f"method {request.service}/{request.method} is not implemented"
                self._send(ttrpc.encode_error(frame.stream_id, Code.UNIMPLEMENTED, message))
                return
            call = Unanswered(frame.stream_id, request.method, method.request.decode(request.payload))
        except (ttrpc.ProtocolError, WireError) as error:
            self._send(ttrpc.encode_error(frame.stream_id, Code.INVALID_ARGUMENT, str(error)))
        else:
            self.answer(call)

    def answer(self, call: Unanswered) -> None:
        """Carry out ``call`` and send its answer, now or when there is one."""
        stream_id, name, request = call
        try:
            answer = self._server.service.call(name, request)
        except Failure as failure:
            self._send(ttrpc.encode_error(stream_id, failure.code, failure.message))
        except Exception as error:
            report("a call failed unexpectedly", error)
            self._send(ttrpc.encode_error(stream_id, Code.INTERNAL, f"shim: {error!r}"))
        else:
            encode = self._server.service.methods[name].response.encode
            if isinstance(answer, Deferred):
                self.unanswered[stream_id] = call

                def resolved(values: Values) -> None:
                    del self.unanswered[stream_id]
                    self._send(ttrpc.encode_response(stream_id, encode(values)))

                answer.then(resolved)
            else:
                self._send(ttrpc.encode_response(stream_id, encode(answer)))

    def _send(self, data: bytes) -> None:
        if self._closed:
            return
        self._out += data
        try:
            while self._out:
                del self._out[: self._peer.send(self._out, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            self._writing = True
            self._server.loop.watch(self._peer.fileno(), READ | WRITE, self._ready)
            return
        except OSError:
            self.close()
            return
        if self._writing:
            self._writing = False
            self._server.loop.watch(self._peer.fileno(), READ, self._ready)

    def close(self) -> None:
        """Drop the connection."""
        if not self._closed:
            self._closed = True
            self._server.loop.unwatch(self._peer.fileno())
            self._peer.close()
            self._server.forget(self)
