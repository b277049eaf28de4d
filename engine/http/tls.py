"""TLS over asyncio streams, with both directions ending on their own.

Rule: a peer's ``close_notify`` ends reading and nothing else; what is still to be written goes out. asyncio's own TLS
transport closes both ways then, which cuts the output of ``echo x | docker run -i … cat`` (RFC 8446 §6.1 allows the
half-close; Go's ``tls.Conn.CloseWrite`` uses it). The connection is terminated in memory (``ssl.MemoryBIO``).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

HANDSHAKE_SECONDS = 15.0
RAW_READ = 1 << 16
DRAIN_AT = 1 << 16
"""Bytes of ciphertext that may wait in memory before ``write`` hands them on."""


def server_context(certificate: str, key: str, client_ca: str = "") -> ssl.SSLContext:
    """A server's context from PEM files; with ``client_ca`` clients must show a certificate that it signed.

    Raises ``OSError`` (a file cannot be read) and ``ssl.SSLError`` (it is no certificate, or the key does not fit).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class TlsStream:
    """One accepted connection: the part of ``StreamReader`` and ``StreamWriter`` that the HTTP server uses."""

    def __init__(self, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._early = b""
        self._said_goodbye = False
        self.transport = writer.transport

    async def handshake(self, seconds: float = HANDSHAKE_SECONDS) -> None:
        """Agree on keys and verify the client; raises ``ssl.SSLError``, ``TimeoutError``, ``ConnectionError``."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self._fill()
                except ssl.SSLError:
                    await self._flush()  # the alert that tells the client why
                    raise
            await self._flush()

    async def _fill(self) -> None:
        data = await self._reader.read(RAW_READ)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            self._writer.write(self._outgoing.read())
        await self._writer.drain()

    async def read(self, limit: int = RAW_READ) -> bytes:
        """Up to ``limit`` bytes; b"" once the client has said that no more will come."""
        if self._early:
            head, self._early = self._early[:limit], self._early[limit:]
            return head
        while True:
            try:
                return self._tls.read(limit)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise ConnectionResetError(f"TLS: {error.reason or error}") from error

    def write(self, data: bytes) -> None:
        """Encrypt ``data`` and hand it to the transport; follow with ``drain``."""
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
            if self._outgoing.pending >= DRAIN_AT:
                self._writer.write(self._outgoing.read())
        if self._outgoing.pending:
            self._writer.write(self._outgoing.read())

    async def drain(self) -> None:
        """Wait until the transport takes more."""
        await self._flush()

    def can_write_eof(self) -> bool:
        """Always: TLS has a message for it."""
        return True

    def write_eof(self) -> None:
        """Say that nothing more will be written; reading goes on."""
        if self._said_goodbye:
            return
        self._said_goodbye = True
        self._take_early()
        with contextlib.suppress(ssl.SSLError):
            # Queues close_notify, then wants the peer's own, which is nobody's business yet.
            self._tls.unwrap()
        if self._outgoing.pending and not self.transport.is_closing():
            self._writer.write(self._outgoing.read())

    def _take_early(self) -> None:
        """Keep what has been received: OpenSSL refuses to say goodbye over unread data."""
        with contextlib.suppress(ssl.SSLError):
            while data := self._tls.read(RAW_READ):
                self._early += data

    def close(self) -> None:
        """Say goodbye and close the socket once everything is out. Idempotent."""
        if not self.transport.is_closing():
            self.write_eof()
        self._writer.close()

    async def wait_closed(self) -> None:
        """Wait for the end of ``close``."""
        await self._writer.wait_closed()
