"""The client of a build, reached over its session: secrets, ssh agents, credentials, named contexts.

Rule: what the client does not have is None; what it cannot answer is an error that says what was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Mapping

from engine.build.context import Context
from engine.build.sources import Base
from engine.buildkit.filesync import translated
from engine.buildkit.http2 import Connection
from engine.buildkit.inputs import Loader
from engine.buildkit.pump import PIECE
from engine.buildkit.requests import BuildRequest
from engine.buildkit.sessions import Session
from engine.images.credentials import Credentials
from oci import reference as references
from oci.errors import GantryError, InvalidArgument, NotFound, Unimplemented
from protos.buildkit import filesync_pb2, secrets_pb2, sshforward_pb2

AGENT_KEY = "buildkit.ssh.id"
HUB = "registry-1.docker.io"
GET_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"  # noqa: S105 - a method's name
CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
CHECK, FORWARD = "/moby.sshforward.v1.SSH/CheckAgent", "/moby.sshforward.v1.SSH/ForwardAgent"


class SessionClient:
    """``engine.build.client.Client`` over a session; sockets of agents are made in ``directory``."""

    def __init__(
        self, session: Session, request: BuildRequest, inputs: Mapping[str, Base], loader: Loader, directory: str
    ) -> None:
        """``inputs``: what other builds made, by the names of ``request.named``."""
        self._session = session
        self._named = {_name(name): (name, value) for name, value in request.named.items()}
        self._inputs = {_name(name): base for name, base in inputs.items()}
        self._loader = loader
        self._directory = directory
        self._contexts: dict[str, asyncio.Task[Context | str]] = {}

    async def secret(self, name: str) -> bytes | None:
        request = secrets_pb2.GetSecretRequest(ID=name)
        try:
            return (await self._session.connection.ask(GET_SECRET, request, secrets_pb2.GetSecretResponse)).data
        except (NotFound, Unimplemented):
            return None
        except GantryError as error:
            if "not found" in error.message:
                return None
            raise translated(error, f"secret {name}") from None

    async def credentials(self, host: str) -> Credentials:
        request = filesync_pb2.CredentialsRequest(Host=HUB if host == references.DEFAULT_HOST else host)
        try:
            found = await self._session.connection.ask(CREDENTIALS, request, filesync_pb2.CredentialsResponse)
        except (NotFound, Unimplemented):
            return Credentials()
        except GantryError as error:
            raise translated(error, f"credentials for {host}") from None
        if found.Secret and not found.Username:
            return Credentials(identitytoken=found.Secret)
        return Credentials(username=found.Username, password=found.Secret)

    async def named(self, name: str) -> Context | Base | str | None:
        key = _name(name)
        if key in self._inputs:
            return self._inputs[key]
        if key not in self._named:
            return None
        if key not in self._contexts:
            self._contexts[key] = asyncio.create_task(self._loader.named(*self._named[key]))
        return await asyncio.shield(self._contexts[key])

    def close(self) -> None:
        """Give up what is still under way."""
        for task in self._contexts.values():
            task.cancel()

    @contextlib.asynccontextmanager
    async def agent(self, name: str) -> AsyncIterator[str | None]:
        connection = self._session.connection
        try:
            await connection.ask(CHECK, sshforward_pb2.CheckAgentRequest(ID=name), sshforward_pb2.CheckAgentResponse)
        except GantryError:
            yield None
            return
        path = f"{self._directory}/a-{secrets.token_hex(8)}"

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # The program in the container sees its connection end, as with an agent that dies.
            with contextlib.suppress(GantryError, OSError):
                await _forward(connection, name, reader, writer)

        server = await asyncio.start_unix_server(accept, path, limit=PIECE)
        try:
            yield path
        finally:
            server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


async def _forward(
    connection: Connection, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One connection to the agent, both ways, until either side ends it."""
    call = connection.call(FORWARD, ((AGENT_KEY, name),))

    async def send() -> None:
        while data := await reader.read(PIECE):
            await call.write(sshforward_pb2.BytesMessage(data=data).SerializeToString())
        call.done_writing()

    sending = asyncio.create_task(send())
    try:
        while pieces := await call.read():
            writer.write(b"".join(sshforward_pb2.BytesMessage.FromString(piece).data for piece in pieces))
            await writer.drain()
    finally:
        call.cancel()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


def _name(name: str) -> str:
    """A name that is the same however an image is called."""
    try:
        return str(references.parse(name).tagged())
    except InvalidArgument:
        return name
