"""Named streams beside a transfer, as containerd's clients make them: progress, credentials, archive bytes.

Rule: a stream exists on the daemon once it has answered our ``StreamInit``; only then is the transfer asked for.
Archive bytes move under a window that the receiver grants (``WindowUpdate``), so neither side buffers without bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from engine.backend import Backend, ends_stream, translated
from oci.errors import GantryError
from protos.containerd import streaming_pb2, transfer_types_pb2

CHUNK = 256 << 10
"""Bytes of an archive in one message, where the window allows so many."""
GRANT = 1 << 30
"""Bytes a sender may send before it is told again."""


def pack(message: Message) -> AnyMessage:
    """``message`` as containerd packs it: the bare name as type URL."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Stream:
    """One open stream; an async context manager."""

    def __init__(self, backend: Backend, metadata: Any) -> None:
        self.id = secrets.token_hex(16)
        self._metadata = metadata
        self._call: Any = None
        # Without an iterator the call is written and read by hand; the stubs' types do not know that form.
        self._open: Any = backend.streaming.Stream
        self._present = backend.present

    async def __aenter__(self) -> Self:
        await self._present()
        with translated():
            self._call = self._open(metadata=self._metadata)
            await self._call.write(pack(streaming_pb2.StreamInit(id=self.id)))
            await self._call.read()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()

    async def send(self, message: Message) -> None:
        """Send one message."""
        with translated():
            await self._call.write(pack(message))

    async def end(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(asyncio.InvalidStateError), translated():
            await self._call.done_writing()

    async def receive(self) -> AnyMessage | None:
        """The next message; None at the end."""
        with translated():
            message = await self._call.read()
        return None if ends_stream(message) else message

    async def progress(self) -> AsyncGenerator[transfer_types_pb2.Progress, None]:
        """The progress events until the daemon ends the stream."""
        while (message := await self.receive()) is not None:
            yield transfer_types_pb2.Progress.FromString(message.value)

    async def answer(self, reply: Callable[[transfer_types_pb2.AuthRequest], transfer_types_pb2.AuthResponse]) -> None:
        """Answer requests for credentials until the daemon ends the stream."""
        with contextlib.suppress(GantryError):
            while (message := await self.receive()) is not None:
                await self.send(reply(transfer_types_pb2.AuthRequest.FromString(message.value)))

    async def upload(self, pieces: AsyncIterator[bytes]) -> None:
        """Send ``pieces`` as fast as the receiver's window lets us, then end."""
        window = 0
        async for piece in _joined(pieces):
            at = 0
            while at < len(piece):
                while window <= 0:
                    message = await self.receive()
                    if message is None:
                        return
                    window += transfer_types_pb2.WindowUpdate.FromString(message.value).update
                part = piece[at : at + min(CHUNK, window)]
                await self.send(transfer_types_pb2.Data(data=part))
                window -= len(part)
                at += len(part)
        await self.end()

    async def download(self) -> AsyncGenerator[bytes, None]:
        """The sender's bytes until it ends.

        More is granted only when all that was granted is here: a message to a sender that has ended breaks the call in
        grpc, with what is still to be read. What limits the bytes under way is HTTP/2's own window.
        """
        left = 0
        while True:
            if left <= 0:
                try:
                    await self.send(transfer_types_pb2.WindowUpdate(update=GRANT))
                except GantryError:
                    return  # it ended at just this byte; how it ended, the transfer tells
                left += GRANT
            message = await self.receive()
            if message is None:
                return
            data = transfer_types_pb2.Data.FromString(message.value).data
            left -= len(data)
            yield data


async def _joined(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """``pieces``, small ones put together: a message costs the same whatever it holds."""
    held: list[bytes] = []
    size = 0
    async for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel ``tasks`` and wait until they are over; their errors are dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
