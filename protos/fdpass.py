"""JSON packets with file descriptors, over ``AF_UNIX``/``SOCK_SEQPACKET``: the wire of the zygote and the keeper.

Rule: one packet is one JSON object; descriptors travel beside it (at most 32) and arrive close-on-exec. Whoever
receives descriptors owns them. Source: unix(7), ``SCM_RIGHTS``.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

MAX_PACKET = 64 << 10
MAX_DESCRIPTORS = 32

_ANCILLARY = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)


class PeerError(Exception):
    """The peer answered ``{"error": …}``, or with something that is no packet of this protocol."""


def send(peer: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one packet; the caller keeps its descriptors. Raises ``OSError`` when the peer is gone."""
    if len(descriptors) > MAX_DESCRIPTORS:
        raise ValueError(f"{len(descriptors)} descriptors in one packet: the limit is {MAX_DESCRIPTORS}")
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_PACKET:
        raise ValueError(f"packet of {len(data)} bytes: the limit is {MAX_PACKET}")
    if descriptors:
        rights = array.array("i", descriptors)
        peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_NOSIGNAL)
    else:
        peer.send(data, socket.MSG_NOSIGNAL)


def receive(peer: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next packet and its descriptors, ``None`` at end of file. Raises ``PeerError`` for a malformed packet."""
    data, ancillary, flags, _ = peer.recvmsg(MAX_PACKET, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, rights in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(rights[: len(rights) - len(rights) % numbers.itemsize])
            descriptors.extend(numbers)
    if not data and not descriptors:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise PeerError("truncated packet")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise PeerError(f"packet is a JSON {type(message).__name__}, not an object")
    except (PeerError, ValueError) as error:
        close_all(descriptors)
        raise error if isinstance(error, PeerError) else PeerError(f"packet is not JSON: {error}") from None
    return message, descriptors


def close_all(descriptors: Sequence[int]) -> None:
    """Close every descriptor, whatever happens to the others."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def connect(path: str, timeout: float | None = 10.0) -> socket.socket:
    """A connection to the server at ``path``; ``timeout`` in seconds bounds every later call on it."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        peer.settimeout(timeout)
        peer.connect(path)
    except BaseException:
        peer.close()
        raise
    return peer


def call(
    peer: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()
) -> tuple[dict[str, Any], list[int]]:
    """One request and its answer. Raises ``PeerError`` when the answer is an error, ``OSError`` on a dead peer."""
    send(peer, message, descriptors)
    answer = receive(peer)
    if answer is None:
        raise PeerError("the peer closed the connection instead of answering")
    values, received = answer
    if "error" in values:
        close_all(received)
        raise PeerError(str(values["error"]))
    return values, received
