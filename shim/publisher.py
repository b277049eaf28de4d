"""Events to containerd: in order, each until it is acknowledged.

Rule: an event is on disk before ``publish`` returns and leaves the disk only when containerd took it, however often
either side is restarted in between. One is in flight at a time: order matters more than throughput here.

File ``events``: u32 little-endian length and that many bytes of a ForwardRequest, again and again; length 0
acknowledges the oldest one.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

from oci.errors import Code
from protos import ttrpc
from protos.shim_messages import EVENT_TOPICS, EVENTS_SERVICE, FORWARD_REQUEST, timestamp
from protos.wire import Message, Values
from shim.loop import READ, Loop, report

_LENGTH = struct.Struct("<I")
_FIRST_RETRY, _LAST_RETRY = 0.05, 2.0
_REFUSALS = (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)


class Publisher:
    """The event queue of one shim. An empty ``address`` means that nobody listens: events are not kept."""

    def __init__(self, loop: Loop, address: str, namespace: str, path: str) -> None:
        self._loop, self._address, self.namespace = loop, address, namespace
        self._queue: deque[bytes] = deque()
        self._decoder = ttrpc.Decoder()
        self._peer: socket.socket | None = None
        self._stream_id = -1
        self._in_flight = False
        self._retry_seconds = _FIRST_RETRY
        self._retrying = False
        self.on_empty: Callable[[], None] | None = None
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._load()
        self._send_next()

    @property
    def pending(self) -> int:
        """Events that containerd has not taken yet."""
        return len(self._queue)

    def publish(self, message: Message, values: Values) -> None:
        """Queue an event of type ``message`` that happened now."""
        if not self._address:
            return
        envelope: Values = {
            "timestamp": timestamp(time.time_ns()),
            "namespace": self.namespace,
            "topic": EVENT_TOPICS[message.name],
            "event": {"type_url": message.name, "value": message.encode(values)},
        }
        data = FORWARD_REQUEST.encode({"envelope": envelope})
        os.write(self._file, _LENGTH.pack(len(data)) + data)
        self._queue.append(data)
        self._send_next()

    def close(self) -> None:
        """Let go of connection and file; what is not delivered stays on disk."""
        if self._peer is not None:
            self._loop.unwatch(self._peer.fileno())
            self._peer.close()
            self._peer = None
        os.close(self._file)

    def _load(self) -> None:
        """Take up what an earlier shim of this bundle could not deliver."""
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        at = 0
        while at + _LENGTH.size <= len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            if length == 0:
                if self._queue:
                    self._queue.popleft()
            elif at + length <= len(data):
                self._queue.append(data[at : at + length])
            at += length

    def _send_next(self) -> None:
        if self._in_flight or self._retrying or not self._queue:
            return
        try:
            if self._peer is None:
                self._peer = self._connect()
            self._stream_id += 2
            metadata = {ttrpc.NAMESPACE_KEY: self.namespace}
            request = ttrpc.encode_request(self._stream_id, EVENTS_SERVICE, "Forward", self._queue[0], metadata)
            self._peer.sendall(request)
        except OSError as error:
            self._later(f"cannot reach {self._address}: {error}")
            return
        self._in_flight = True

    def _connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            peer.settimeout(1.0)
            peer.connect(self._address)
            self._loop.watch(peer.fileno(), READ, self._ready)
        except BaseException:
            peer.close()
            raise
        self._decoder = ttrpc.Decoder()
        return peer

    def _ready(self, _events: int) -> None:
        assert self._peer is not None
        try:
            data = self._peer.recv(64 << 10)
            frames = self._decoder.feed(data)
        except (OSError, ttrpc.ProtocolError) as error:
            self._later(f"the connection to {self._address} broke: {error}")
            return
        if not data:
            self._later(f"{self._address} hung up")
            return
        for frame in frames:
            if frame.stream_id == self._stream_id and frame.kind == ttrpc.RESPONSE:
                self._answered(ttrpc.decode_response(frame))

    def _answered(self, response: ttrpc.Response) -> None:
        if response.code in _REFUSALS:
            report(f"containerd refuses an event: {response.message}: it is dropped")
        elif response.code:
            self._later(f"containerd cannot take an event now: {response.message}")
            return
        self._in_flight = False
        self._retry_seconds = _FIRST_RETRY
        self._queue.popleft()
        if self._queue:
            os.write(self._file, _LENGTH.pack(0))
            self._send_next()
        else:
            os.ftruncate(self._file, 0)
            if self.on_empty is not None:
                self.on_empty()

    def _later(self, reason: str) -> None:
        """Give up the connection; try again after a while if anything is left to send."""
        if self._peer is not None:
            self._loop.unwatch(self._peer.fileno())
            self._peer.close()
            self._peer = None
        self._in_flight = False
        if not self._queue or self._retrying:
            return
        if self._retry_seconds == _FIRST_RETRY:
            report(f"{reason}: {len(self._queue)} events are kept")
        self._retrying = True
        self._loop.call_later(self._retry_seconds, self._retry)
        self._retry_seconds = min(self._retry_seconds * 2, _LAST_RETRY)

    def _retry(self) -> None:
        self._retrying = False
        self._send_next()
