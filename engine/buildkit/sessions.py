"""Sessions: connections on which the client serves and the engine calls.

Rule: a session lives as long as its connection; who waits for a call on it is told when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets

import grpc.aio

from engine.buildkit.pump import PIECE, pump
from engine.http.messages import Duplex
from oci.errors import InvalidArgument, NotFound

APPEARS_SECONDS = 5.0
"""How long a build waits for the session that it was told of."""

OPTIONS = (
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", 32 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_retries", 0),
)


class Session:
    """One client. ``shared_key`` is what it calls the directory that it builds."""

    def __init__(self, name: str, shared_key: str, channel: grpc.aio.Channel) -> None:
        self.name = name
        self.shared_key = shared_key
        self.channel = channel


class Sessions:
    """All that are there now; sockets of ours live in ``directory``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._sessions: dict[str, Session] = {}
        self._changed = asyncio.Condition()

    async def serve(self, name: str, shared_key: str, duplex: Duplex) -> None:
        """Have the session until its connection ends. Raises ``InvalidArgument`` when there is one of that name."""
        if name in self._sessions:
            raise InvalidArgument(f"session {name} already exists")
        path = f"{self._directory}/s-{secrets.token_hex(8)}"
        over = asyncio.Event()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # There is one connection, and no second chance for it.
            server.close()
            try:
                await pump(duplex, reader, writer)
            finally:
                over.set()

        server = await asyncio.start_unix_server(accept, path, limit=PIECE)
        channel = grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS)
        channel.get_state(try_to_connect=True)
        await self._register(Session(name, shared_key, channel))
        try:
            await over.wait()
        finally:
            self._sessions.pop(name, None)
            server.close()
            await channel.close(None)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    async def _register(self, session: Session) -> None:
        async with self._changed:
            self._sessions[session.name] = session
            self._changed.notify_all()

    async def get(self, name: str) -> Session:
        """The session ``name``, waited for a little. Raises ``NotFound``."""
        # Clients put a colon and a prefix before the name to tell requests apart.
        wanted = name.rpartition(":")[2]
        try:
            async with asyncio.timeout(APPEARS_SECONDS), self._changed:
                await self._changed.wait_for(lambda: wanted in self._sessions)
                return self._sessions[wanted]
        except TimeoutError:
            raise NotFound(f"no active session for {wanted}", hint="has the client gone away?") from None
