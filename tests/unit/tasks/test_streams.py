"""Streams beside a request: one message at a time, whoever sends."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from containerd_py.interfaces import Scope
from containerd_py.services.streaming import StreamingService, Streams, pack
from protos.containerd import streaming_pb2, transfer_types_pb2


class Slow:
    """A call whose first write takes until ``release``; two writes at once are an error, as in grpc."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.begun = asyncio.Event()
        self.writing = False
        self.written: list[str] = []

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("containerd-namespace", "n"),)

    async def read(self) -> AnyMessage:
        return pack(streaming_pb2.StreamInit(id="s"))

    async def write(self, message: AnyMessage) -> None:
        assert not self.writing, "two operations at once"
        self.writing = True
        self.begun.set()
        await self.release.wait()
        self.writing = False
        self.written.append(message.type_url)


def test_a_message_waits_for_the_answer_to_the_init() -> None:
    async def both() -> list[str]:
        streams, call = Streams(), Slow()
        context: Any = call
        requests: Any = None
        serving = asyncio.create_task(StreamingService(streams).Stream(requests, context))
        await call.begun.wait()
        stream = streams.get(Scope("n"), "s")
        sending = asyncio.create_task(stream.send(transfer_types_pb2.Progress(event="early")))
        await asyncio.sleep(0)
        call.release.set()
        await sending
        stream.close()
        await serving
        return call.written

    assert asyncio.run(both()) == [Empty.DESCRIPTOR.full_name, transfer_types_pb2.Progress.DESCRIPTOR.full_name]
