"""The client of a build, reached over its session: secrets, ssh agents, credentials, named contexts.

Rule: what the client does not have is None; what it cannot answer is an error that says what was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from typing import Any

import grpc

from engine.build.context import Context
from engine.buildkit.filesync import translated
from engine.buildkit.inputs import Loader
from engine.buildkit.pump import PIECE
from engine.buildkit.requests import BuildRequest
from engine.buildkit.sessions import Session
from engine.images.credentials import Credentials
from oci import reference as references
from oci.errors import InvalidArgument
from protos.buildkit import filesync_pb2, secrets_pb2, sshforward_pb2
from protos.buildkit.filesync_pb2_grpc import AuthStub
from protos.buildkit.secrets_pb2_grpc import SecretsStub
from protos.buildkit.sshforward_pb2_grpc import SSHStub

AGENT_KEY = "buildkit.ssh.id"
HUB = "registry-1.docker.io"
ABSENT = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED})


class SessionClient:
    """``engine.build.client.Client`` over a session; sockets of agents are made in ``directory``."""

    def __init__(self, session: Session, request: BuildRequest, loader: Loader, directory: str) -> None:
        self._session = session
        self._named = {_name(name): (name, value) for name, value in request.named.items()}
        self._loader = loader
        self._directory = directory
        self._contexts: dict[str, asyncio.Task[Context | str]] = {}

    async def secret(self, name: str) -> bytes | None:
        stub = SecretsStub(self._session.channel)
        try:
            return bytes((await stub.GetSecret(secrets_pb2.GetSecretRequest(ID=name))).data)
        except grpc.aio.AioRpcError as error:
            if error.code() in ABSENT or "not found" in (error.details() or ""):
                return None
            raise translated(error, f"secret {name}") from None

    async def credentials(self, host: str) -> Credentials:
        asked = HUB if host == references.DEFAULT_HOST else host
        stub = AuthStub(self._session.channel)
        try:
            found = await stub.Credentials(filesync_pb2.CredentialsRequest(Host=asked))
        except grpc.aio.AioRpcError as error:
            if error.code() in ABSENT:
                return Credentials()
            raise translated(error, f"credentials for {host}") from None
        if found.Secret and not found.Username:
            return Credentials(identitytoken=found.Secret)
        return Credentials(username=found.Username, password=found.Secret)

    async def named(self, name: str) -> Context | str | None:
        key = _name(name)
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
        stub: Any = SSHStub(self._session.channel)
        try:
            await stub.CheckAgent(sshforward_pb2.CheckAgentRequest(ID=name))
        except grpc.aio.AioRpcError:
            yield None
            return
        path = f"{self._directory}/a-{secrets.token_hex(8)}"

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _forward(stub, name, reader, writer)

        server = await asyncio.start_unix_server(accept, path, limit=PIECE)
        try:
            yield path
        finally:
            server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


async def _forward(stub: Any, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection to the agent, both ways, until either side ends it."""
    call = stub.ForwardAgent(metadata=((AGENT_KEY, name),))

    async def send() -> None:
        while data := await reader.read(PIECE):
            await call.write(sshforward_pb2.BytesMessage(data=data))
        await call.done_writing()

    sending = asyncio.create_task(send())
    try:
        async for message in call:
            writer.write(message.data)
            await writer.drain()
    except (grpc.aio.AioRpcError, OSError):
        # The program in the container sees its connection end, as with an agent that dies.
        pass
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
