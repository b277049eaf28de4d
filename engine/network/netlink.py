"""Netlink framing on plain sockets: messages, attributes, acknowledgements (RFC 3549, linux/netlink.h).

Rule: this module knows no family. A request is bytes made by ``message``; many of them travel in one ``sendmsg`` and
each is acknowledged, so a whole interface costs two system calls. Calls block for as long as the kernel works on them
(tens of microseconds, a few milliseconds under the rtnl lock): the engine makes them on a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_ROOT_MATCH = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_MIN_TYPE = 0x10

NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

SOL_NETLINK = 270
NETLINK_EXT_ACK = 11
NETLINK_CAP_ACK = 10
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

RECEIVE_SIZE = 1 << 17
SEND_BUFFER = 1 << 17

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


class NetlinkError(OSError):
    """The kernel refused a request; ``index`` is the position in the batch, ``detail`` the kernel's own words or ""."""

    def __init__(self, number: int, index: int, detail: str) -> None:
        super().__init__(number, f"{os.strerror(number)}{f': {detail}' if detail else ''}")
        self.index = index
        self.detail = detail


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = 4 + len(payload)
    return _ATTRIBUTE.pack(size, kind) + payload + b"\0" * (-size & 3)


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """A 32-bit attribute in host byte order."""
    return attribute(kind, struct.pack("=I", value))


def be32(kind: int, value: int) -> bytes:
    """A 32-bit attribute in network byte order, as nfnetlink wants its numbers."""
    return attribute(kind, struct.pack(">I", value))


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, payload) pairs in ``data``; stops at the first malformed one."""
    at = 0
    while at + 4 <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4:
            return
        yield kind & _NLA_TYPE_MASK, data[at + 4 : at + size]
        at += (size + 3) & ~3


def message(kind: int, flags: int, body: bytes) -> tuple[int, int, bytes]:
    """A request without its sequence number: ``Netlink`` gives it one."""
    return kind, flags, body


def frame(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One whole netlink message."""
    size = 16 + len(body)
    return _HEADER.pack(size, kind, flags, sequence, 0) + body + b"\0" * (-size & 3)


Message = tuple[int, int, bytes]


class Netlink:
    """One netlink socket, bound to the network namespace of the thread that made it. Not for concurrent use."""

    def __init__(self, protocol: int, *, timeout: float = 20.0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        self._timeout = timeout
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(timeout)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def request(self, *messages: Message) -> None:
        """Send ``messages`` in one packet and wait for every acknowledgement; raises the first ``NetlinkError``."""
        errors = self.request_all(messages)
        if errors:
            raise errors[0]

    def request_all(self, messages: Iterable[Message]) -> list[NetlinkError]:
        """Send ``messages`` in one packet; the refusals, in order. A refused message does not stop those behind it."""
        first = self._sequence + 1
        packet = bytearray()
        for kind, flags, body in messages:
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            packet += frame(kind, flags | NLM_F_REQUEST | NLM_F_ACK, self._sequence, body)
        waiting = self._sequence - first + 1
        if not waiting:
            return []
        self._socket.send(packet)
        refused: list[NetlinkError] = []
        for kind, flags, sequence, body in self._replies():
            if kind != NLMSG_ERROR or sequence < first:
                continue
            failure = decode_error(flags, body, sequence - first)
            if failure is not None:
                refused.append(failure)
            waiting -= 1
            if not waiting:
                break
        return refused

    def transaction(self, begin: Message, messages: Sequence[Message], end: Message) -> None:
        """Send a batch that the kernel applies as a whole or not at all (nfnetlink); raises its first refusal.

        Kernels before 6.10 do not acknowledge the end of a batch, so the last message before it asks. All answers are
        queued by the time ``send`` returns.
        """
        if not messages:
            return
        first = self._sequence + 1
        packet = bytearray()
        for kind, flags, body in (begin, *messages, end):
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            acknowledge = NLM_F_ACK if self._sequence == first + len(messages) else 0
            packet += frame(kind, flags | NLM_F_REQUEST | acknowledge, self._sequence, body)
        if len(packet) > SEND_BUFFER:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(packet))
        self._socket.send(packet)
        for kind, flags, sequence, body in self._replies():
            if kind != NLMSG_ERROR or sequence < first:
                continue
            refusal = decode_error(flags, body, sequence - first - 1)
            if refusal is not None:
                self._drain()
                raise refusal
            if sequence == first + len(messages):
                return

    def _drain(self) -> None:
        """Throw away what else is queued."""
        self._socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(RECEIVE_SIZE):
                pass
        self._socket.settimeout(self._timeout)

    def dump(self, kind: int, body: bytes, *, flags: int = NLM_F_ROOT_MATCH) -> list[tuple[int, bytes]]:
        """Every (type, body) the kernel answers a query with; with ``flags=0`` a query for one object."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        want = self._sequence
        self._socket.send(frame(kind, flags | NLM_F_REQUEST | (0 if flags else NLM_F_ACK), want, body))
        out: list[tuple[int, bytes]] = []
        for got, answer_flags, sequence, answer in self._replies():
            if sequence != want:
                continue
            if got == NLMSG_DONE:
                return out
            if got == NLMSG_ERROR:
                failure = decode_error(answer_flags, answer, 0)
                if failure is not None:
                    raise failure
                return out
            out.append((got, answer))
        return out

    def _replies(self) -> Iterator[tuple[int, int, int, bytes]]:
        while True:
            try:
                data = self._socket.recv(RECEIVE_SIZE)
            except InterruptedError:
                continue
            at = 0
            while at + 16 <= len(data):
                size, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
                if size < 16:
                    break
                yield kind, flags, sequence, data[at + 16 : at + size]
                at += (size + 3) & ~3


def decode_error(flags: int, body: bytes, index: int) -> NetlinkError | None:
    """The refusal in an ``NLMSG_ERROR``, or None for an acknowledgement."""
    number = -struct.unpack_from("=i", body)[0]
    if number == 0:
        return None
    detail = ""
    if flags & NLM_F_ACK_TLVS:
        (size,) = struct.unpack_from("=I", body, 4)
        start = 20 if flags & NLM_F_CAPPED else 4 + ((size + 3) & ~3)
        for kind, payload in attributes(body[start:]):
            if kind == _NLMSGERR_ATTR_MSG:
                detail = payload.rstrip(b"\0").decode(errors="replace")
    return NetlinkError(number, index, detail)


GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENXIO})
"""Refusals that mean: what was to be removed is not there."""
