"""One sandbox: its bundle, the connection to its shim, and how it ended.

Rule: as for tasks, the shim answers for the sandbox; ``ended`` speaks for it when it has stopped and the shim is gone.
A call waits while a lost shim of ours is being replaced.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from google.protobuf.message import Message

from containerd_py.tasks.bundle import Bundle, Endpoint, ExitRecord
from containerd_py.tasks.foreign import ShimLog, is_own
from containerd_py.tasks.shim_client import ShimClient, ShimLost
from oci import errors

M = TypeVar("M", bound=Message)

SERVICE = "containerd.runtime.sandbox.v1.Sandbox"

RECOVERY_SECONDS = 10.0
"""How long a call waits for a lost shim to be replaced; WaitSandbox waits as long as it takes."""

_RECORD = "controller.json"


class Record(msgspec.Struct):
    """What the controller must know of a sandbox besides what its shim knows. Times are nanoseconds since the epoch."""

    runtime: str
    created_at: int
    started_at: int = 0


class Sandbox:
    """A sandbox from its creation to its shutdown."""

    __slots__ = (
        "bundle",
        "client",
        "deleting",
        "ended",
        "endpoint",
        "follower",
        "log",
        "program",
        "record",
        "recovery",
        "removal",
        "stopping",
        "whole",
    )

    def __init__(self, bundle: Bundle, record: Record, program: tuple[str, ...]) -> None:
        self.bundle = bundle
        self.record = record
        self.program = program
        self.client: ShimClient | None = None
        self.endpoint: Endpoint | None = None
        self.whole = False
        """Whether the shim has made it; before that nobody but the creator sees it."""
        self.stopping = self.deleting = False
        self.ended: asyncio.Future[ExitRecord] = asyncio.get_running_loop().create_future()
        self.follower: asyncio.Task[None] | None = None
        self.recovery: asyncio.Task[None] | None = None
        self.removal: asyncio.Task[None] | None = None
        self.log: ShimLog | None = None

    @property
    def namespace(self) -> str:
        return self.bundle.namespace

    @property
    def id(self) -> str:
        return self.bundle.id

    @property
    def own(self) -> bool:
        """Whether the shim is ours: then a dead one is replaced."""
        return is_own(self.record.runtime)

    def save(self) -> None:
        """Put the record on disk."""
        self.bundle.write(_RECORD, msgspec.json.encode(self.record))

    async def call(self, method: str, request: Message, answer: type[M], *, seconds: float | None = None) -> M:
        """The shim's answer; asked again of the shim that replaces one lost meanwhile.

        Raises its error, and ``Unavailable`` when there is no shim any more or none soon enough.
        """
        while True:
            client = await self._connected(None if method == "WaitSandbox" else RECOVERY_SECONDS)
            try:
                return await client.call(method, request, answer, seconds=seconds)
            except ShimLost:
                if self.client is client:
                    raise

    async def _connected(self, seconds: float | None) -> ShimClient:
        while self.client is None and self.recovery is not None and not self.recovery.done():
            done, _ = await asyncio.wait((self.recovery,), timeout=seconds)
            if not done:
                break
        if self.client is None:
            raise errors.Unavailable(f"sandbox {self.id}: its shim has ended")
        return self.client

    def close(self) -> None:
        """Let go of the shim without ending it."""
        for job in (self.follower, self.recovery):
            if job is not None:
                job.cancel()
        if self.client is not None:
            self.client.close()
            self.client = None
        if self.log is not None:
            self.log.close()
            self.log = None


def load_record(bundle: Bundle) -> Record | None:
    """The record of an earlier life of the daemon; None when the sandbox was not recorded yet."""
    data = bundle.read(_RECORD)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=Record)
    except msgspec.DecodeError:
        return None
