"""``containerd.sock``: gRPC's door. grpc is loaded when the first client speaks, and most daemons never see one.

Rule: a client cannot tell. The socket listens from the start; what speaks there before grpc does is held back while
grpc is loaded and then passed on to it, byte by byte. Meanwhile grpc's own socket has taken over the name, by one
``rename``, so that all later clients reach it directly and none finds the door closed; those who came early are asked
to connect once more, as gRPC does it, without a call lost. Whoever connects and says nothing (a probe whether the
daemon lives) loads nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import structlog

from containerd_py.settings import Tcp

MODE = 0o660
BACKLOG = 1024
NEW, EARLY = "s", "e"
"""Sockets in the directory beside the address."""

_log = structlog.get_logger("containerd_py.door")


class Door:
    """The socket ``address``, and the TCP address where one is given."""

    def __init__(self, address: str, tcp: Tcp, servicers: Sequence[object]) -> None:
        self.address = address
        self._tcp = tcp
        self._servicers = servicers
        self._listener: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None
        self._stop: Callable[[], Any] | None = None
        self._clients: set[_Client] = set()

    async def listen(self) -> None:
        """Take clients from now on. With TCP grpc is there from the start: its clients could not be held back.

        Raises ``FailedPrecondition`` when the TCP address cannot be had, ``OSError``.
        """
        if self._tcp.address:
            await self.open()
            _log.info("serving TCP", address=self._tcp.address, clients_verified=bool(self._tcp.authority))
            return
        listener = socket.socket(socket.AF_UNIX)
        with _replacing(self.address) as directory:
            listener.bind(f"{directory}/{NEW}")
            listener.listen(BACKLOG)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(
            lambda: _Client(self, self._clients), sock=listener, backlog=BACKLOG
        )

    async def open(self) -> None:
        """Return when grpc listens; later tries follow a failed one."""
        if self._opening is None or (self._opening.done() and self._stop is None):
            self._opening = asyncio.get_running_loop().create_task(self._open())
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        # In a thread: it takes 0.1 s, and calls over ttrpc need not wait for it.
        server = await asyncio.to_thread(importlib.import_module, "containerd_py.grpc_server")
        with _replacing(self.address) as directory:
            self._stop = await server.serve(self._servicers, f"{directory}/{NEW}", f"{directory}/{EARLY}", self._tcp)

    @property
    def early(self) -> str:
        """Where grpc takes what is passed on."""
        return f"{_directory(self.address)}/{EARLY}"

    async def close(self) -> None:
        """End all connections; gRPC calls in flight have ``grpc_server.STOP_GRACE`` seconds."""
        if self._listener is not None:
            self._listener.close()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        if self._stop is not None:
            await self._stop()
        for client in tuple(self._clients):
            client.abort()
        for path in (self.address, self.early):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(_directory(self.address))


def _directory(address: str) -> str:
    return f"{address}.d"


@contextlib.contextmanager
def _replacing(address: str) -> Iterator[str]:
    """A directory where the block binds the socket ``NEW``, which then takes the name ``address``, whoever had it.

    The directory is closed to others: a umask, which would keep them from the socket until it has its mode, would be
    everybody's in this process.
    """
    directory = _directory(address)
    os.makedirs(directory, 0o700, exist_ok=True)
    for name in (NEW, EARLY):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{directory}/{name}")
    yield directory
    os.chmod(f"{directory}/{NEW}", MODE)
    os.rename(f"{directory}/{NEW}", address)


class _End(asyncio.Protocol):
    """One end of a connection that is passed on: what it says goes to ``other``, at the pace of that."""

    def __init__(self, other: asyncio.Transport | None = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.other = other

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def eof_received(self) -> bool:
        if self.other is not None and self.other.can_write_eof():
            self.other.write_eof()
        return self.other is not None  # the other direction goes on

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.other is not None:
            self.other.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _Client(_End):
    """A client that connected before grpc listened."""

    def __init__(self, door: Door, clients: set[_Client]) -> None:
        super().__init__()
        self._door = door
        self._clients = clients
        self._said: list[bytes] = []
        self._passing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)
            return
        self._said.append(data)
        if self._passing is None and self.transport is not None:
            self.transport.pause_reading()
            self._passing = asyncio.get_running_loop().create_task(self._pass_on())

    async def _pass_on(self) -> None:
        try:
            await self._door.open()
            if self.transport is None:  # gone meanwhile
                return
            client = self.transport
            connecting = asyncio.get_running_loop().create_unix_connection(lambda: _End(client), self._door.early)
            _, far = await connecting
        except Exception as error:
            _log.error("gRPC cannot be served", address=self._door.address, error=str(error))
            self.abort()
            return
        if self.transport is None or far.transport is None:
            self.abort()
            far.abort()
            return
        self.other = far.transport
        self.other.writelines(self._said)
        self._said.clear()
        self.transport.resume_reading()
