"""What a build gets from who asked for it while it runs: secrets, agents, credentials, further contexts.

Rule: asked for when a step needs it and not before; a build never learns how its client is reached.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from engine.build.context import Context
from engine.build.options import BuildOptions
from engine.images.credentials import Credentials

if TYPE_CHECKING:
    from engine.build.sources import Base


class Client(Protocol):
    """Who asked for a build."""

    async def secret(self, name: str) -> bytes | None:
        """The secret called ``name``; None when there is none."""

    def agent(self, name: str) -> AbstractAsyncContextManager[str | None]:
        """The ssh agent called ``name`` as the path of a socket, for one step; None when there is none."""

    async def credentials(self, host: str) -> Credentials:
        """What to log in with at the registry ``host``; empty when there is nothing."""

    async def named(self, name: str) -> Context | Base | str | None:
        """What replaces the image ``name``: files, something built, or another image's name; None when nothing does."""


class Given:
    """A client that said everything in its request."""

    def __init__(self, options: BuildOptions) -> None:
        self._options = options

    async def secret(self, name: str) -> bytes | None:
        return self._options.secrets.get(name)

    @contextlib.asynccontextmanager
    async def agent(self, name: str) -> AsyncIterator[str | None]:
        del name
        yield None

    async def credentials(self, host: str) -> Credentials:
        return self._options.credentials.get(host, Credentials())

    async def named(self, name: str) -> Context | str | None:
        del name
        return None
