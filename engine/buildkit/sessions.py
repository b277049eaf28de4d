"""Sessions: connections on which the client serves and the engine calls.

Rule: a session lives as long as its connection; who waits for a call on it is told when it ends.
"""

from __future__ import annotations

import asyncio

from engine.buildkit.http2 import Connection
from engine.http.messages import Duplex
from oci.errors import InvalidArgument, NotFound

APPEARS_SECONDS = 5.0
"""How long a build waits for the session that it was told of."""


class Session:
    """One client. ``shared_key`` is what it calls the directory that it builds."""

    def __init__(self, name: str, shared_key: str, connection: Connection) -> None:
        self.name = name
        self.shared_key = shared_key
        self.connection = connection


class Sessions:
    """All that are there now."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._changed = asyncio.Condition()

    async def serve(self, name: str, shared_key: str, duplex: Duplex) -> None:
        """Have the session until its connection ends. Raises ``InvalidArgument`` when there is one of that name."""
        if name in self._sessions:
            raise InvalidArgument(f"session {name} already exists")
        session = Session(name, shared_key, Connection(duplex))
        await self._register(session)
        try:
            await session.connection.serve()
        finally:
            self._sessions.pop(name, None)

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
