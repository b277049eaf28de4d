"""Notices when somebody flushes the host's rule sets, and with them ours.

Rule: only the deletion of our own table counts; everything else on the notification socket is thrown away unread.
Restarting the host's firewall (``nft flush ruleset``) must not cut off containers until the next one is started.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import structlog

from engine.network import nft
from engine.network.netlink import NETLINK_NETFILTER, SOL_NETLINK, attributes
from oci.errors import GantryError

log = structlog.get_logger()

NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_NFTABLES = 7
RECEIVE_SIZE = 1 << 17
_HEADER = struct.Struct("=IHHII")
_DELETED = nft.SUBSYSTEM << 8 | nft.DELETE_TABLE


class TableWatcher:
    """Runs ``mend`` when the table was deleted, or may have been because notifications were lost."""

    def __init__(self, table: str, mend: Callable[[], Awaitable[None]]) -> None:
        self._table = table
        self._mend = mend
        self._socket: socket.socket | None = None
        self._mending: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch, where the kernel has nftables. Idempotent."""
        self.stop()
        try:
            self._open()
        except OSError as error:
            log.warning("a flush of the firewall would not be noticed", error=str(error))

    def _open(self) -> None:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        try:
            sock.setblocking(False)
            sock.bind((0, 0))
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
            asyncio.get_running_loop().add_reader(sock.fileno(), self._read)
        except BaseException:
            sock.close()
            raise
        self._socket = sock

    def stop(self) -> None:
        """Watch no more. Idempotent."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            # ENOBUFS: more happened than fitted; one of it may have been ours.
            self._lost()
            return
        if deletes(data, self._table):
            self._lost()

    def _lost(self) -> None:
        if self._mending is None or self._mending.done():
            self._mending = asyncio.get_running_loop().create_task(self._try())

    async def _try(self) -> None:
        try:
            await self._mend()
        except (OSError, GantryError) as error:
            log.error("the firewall table could not be made again", error=str(error))


def deletes(data: bytes, table: str) -> bool:
    """Whether a notification tells of the deletion of table ``inet TABLE``."""
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, *_ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            return False
        if kind == _DELETED and data[at + 16] == nft.FAMILY_INET:
            name = dict(attributes(data[at + 20 : at + size])).get(1, b"").rstrip(b"\0")
            if name == table.encode():
                return True
        at += (size + 3) & ~3
    return False
