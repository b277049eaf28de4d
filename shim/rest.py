"""A shim at rest: a fork of the zygote that holds another's descriptors and waits for one of them.

Rule: as little as possible is touched between the fork and the poll, because what is touched is this process's own
memory from then on: the state stays the bytes that came. Wire: "Shims at rest" in docs/internals.md.
"""

from __future__ import annotations

import array
import select
import socket
import struct
from collections.abc import Sequence

from protos import fdpass
from shim.bundle import succeed

READY, GO = b"ready", b"go"
"""The fork has everything; the shim that hands over has ended and will touch nothing any more."""

LARGEST_STATE = 48 << 10

_PID = struct.Struct("i")
_CREDENTIALS = 3 * _PID.size
_LARGEST = 64 << 10
_ANCILLARY = socket.CMSG_SPACE(fdpass.MAX_DESCRIPTORS * array.array("i").itemsize)


def encode(bundle: str, watched: Sequence[tuple[int, int]], state: bytes) -> bytes:
    """The packet that hands over: count, pairs of a descriptor's place and poll events, bundle, NUL, state."""
    pairs = bytes(number for pair in watched for number in pair)
    return bytes([len(watched)]) + pairs + bundle.encode() + b"\0" + state


def wait(link: socket.socket) -> tuple[bytes, list[int]] | None:
    """Take over from the shim at the other end of ``link`` and wait until there is something to do.

    Gives the state and the descriptors; ``None`` when the other went on itself, was killed in the middle of it, or
    somebody else has claimed the bundle.
    """
    with link:
        data, ancillary, _, _ = link.recvmsg(_LARGEST, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        descriptors = array.array("i")
        for _, _, rights in ancillary:
            descriptors.frombytes(rights)
        link.send(READY)
        if link.recv(len(GO)) != GO or link.recv(1):
            return None
        (predecessor,) = _PID.unpack_from(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS))
    count = data[0]
    end = data.index(0, 1 + 2 * count)
    if not succeed(data[1 + 2 * count : end].decode(), predecessor):
        return None
    poller = select.poll()
    for at in range(1, 1 + 2 * count, 2):
        poller.register(descriptors[data[at]], data[at + 1])
    poller.poll()
    return data[end + 1 :], list(descriptors)
