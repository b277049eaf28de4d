"""One task: its bundle, the connection to its shim, and what is known when there is no shim.

Rule: a task is answered by its shim. ``call`` waits while a lost shim is being replaced and then repeats the call, or
finds out what became of it; only when no shim can be had any more does ``final`` (the exit record) speak for it.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from google.protobuf.message import Message

from containerd_py.tasks.bundle import Bundle, ExitRecord
from containerd_py.tasks.foreign import ShimLog, is_own
from containerd_py.tasks.shim_client import ShimClient, ShimLost
from oci import errors
from protos.containerd import shim_v2_pb2, task_types_pb2

M = TypeVar("M", bound=Message)

ONCE = frozenset({"Create", "Shutdown"})
"""Calls that a replaced shim cannot go on with; all others are repeated, or looked after (``_resumed``)."""

CHANGES = frozenset({"Start", "Pause", "Resume", "Checkpoint", "Delete"})
"""Calls after which a container's own process has another status."""

RECOVERY_SECONDS = 10.0
"""How long a call waits for a lost shim to be replaced; Wait waits as long as it takes."""


class Task:
    """A container that has been created. Instances live in ``TaskManager``'s table until ``Delete``."""

    __slots__ = (
        "bundle",
        "changes",
        "client",
        "created",
        "deleting",
        "deletion",
        "final",
        "known",
        "log",
        "making",
        "pid",
        "program",
        "recovery",
        "runtime",
        "sandbox",
        "shim_pid",
    )

    def __init__(self, bundle: Bundle, runtime: str, program: tuple[str, ...]) -> None:
        self.bundle = bundle
        self.runtime = runtime
        self.program = program
        self.client: ShimClient | None = None
        self.shim_pid = 0
        self.pid = 0
        self.created = False
        """Whether the shim's Create has succeeded; before it nobody but the creator sees the task."""
        self.making: asyncio.Task[Task] | asyncio.Task[None] | None = None
        """The create under way, or the sweep of one that failed."""
        self.deletion: asyncio.Task[ExitRecord] | None = None
        self.deleting = False
        """Whether the task is on its way out: a lost shim is then no reason to start another."""
        self.final: ExitRecord | None = None
        """How the container ended, when no shim is left to ask."""
        self.recovery: asyncio.Task[None] | None = None
        self.log: ShimLog | None = None
        self.known: task_types_pb2.Process | None = None
        """The container's own process as its shim would tell it, unless it has an exit record by now."""
        self.changes = 0
        """Grows whenever ``known`` may not be true any more."""
        self.sandbox = ""
        """The sandbox that the task belongs to."""

    @property
    def namespace(self) -> str:
        return self.bundle.namespace

    @property
    def id(self) -> str:
        return self.bundle.id

    @property
    def own(self) -> bool:
        """Whether the shim is ours: then a dead one can be replaced."""
        return is_own(self.runtime)

    @property
    def shares_shim(self) -> bool:
        """Whether the shim is the sandbox's, and goes on without the task."""
        return bool(self.sandbox) and not self.own

    async def shim(self, seconds: float | None = RECOVERY_SECONDS) -> ShimClient | None:
        """The shim's client, after a recovery under way has ended; None when ``final`` is all there is.

        Raises ``Unavailable`` when the recovery takes longer than ``seconds``.
        """
        while self.client is None and self.recovery is not None and not self.recovery.done():
            done, _ = await asyncio.wait((self.recovery,), timeout=seconds)
            if not done and self.client is None:
                raise errors.Unavailable(
                    f"task {self.id}: its shim ended and another could not be started in {seconds} s",
                    hint="containerd-py keeps trying; its log tells why",
                )
        return self.client

    async def call(self, method: str, request: Message, answer: type[M], *, seconds: float | None = None) -> M:
        """The shim's answer. Raises its error, ``FailedPrecondition`` when the task ended and its shim is gone."""
        if method in CHANGES and not getattr(request, "exec_id", ""):
            self.changed()
        cut_off = False
        while True:
            client = await self.shim(None if method == "Wait" else RECOVERY_SECONDS)
            if client is None:
                raise self._gone()
            try:
                if cut_off:
                    return await _resumed(client, method, request, answer, seconds)
                return await client.call(method, request, answer, seconds=seconds)
            except ShimLost as error:
                if method in ONCE:
                    raise errors.Unavailable(
                        f"task {self.id}: its shim ended during {method}: {error}",
                        hint="the task's state tells whether it was done",
                    ) from error
            if self.client is client:
                raise self._gone()
            cut_off = True

    def changed(self) -> None:
        """What is known of the container's own process may be otherwise now."""
        self.known = None
        self.changes += 1

    def learn(self, process: task_types_pb2.Process, changes: int) -> None:
        """Note what was true when ``changes`` had that value."""
        if self.own and self.changes == changes:
            self.known = process

    def close(self) -> None:
        """Let go of the shim and its log without ending either."""
        if self.recovery is not None:
            self.recovery.cancel()
        if self.client is not None:
            self.client.close()
        if self.log is not None:
            self.log.close()
            self.log = None

    def _gone(self) -> errors.GantryError:
        if self.final is not None:
            return errors.FailedPrecondition(f"task {self.id} has ended with exit status {self.final.exit_status}")
        return errors.NotFound(f"task {self.id} not found")


async def _resumed(client: ShimClient, method: str, request: Message, answer: type[M], seconds: float | None) -> M:
    """Carry on with a call during which the last shim was killed: what it did already is not done again."""
    if isinstance(request, shim_v2_pb2.StartRequest):
        where = shim_v2_pb2.StateRequest(id=request.id, exec_id=request.exec_id)
        state = await client.call("State", where, shim_v2_pb2.StateResponse, seconds=seconds)
        if state.status != task_types_pb2.CREATED and state.pid:
            return answer.FromString(shim_v2_pb2.StartResponse(pid=state.pid).SerializeToString())
        if state.status == task_types_pb2.STOPPED:
            raise errors.Unavailable(f"process {request.exec_id} of task {request.id}: its start was cut off")
    try:
        return await client.call(method, request, answer, seconds=seconds)
    except errors.AlreadyExists:
        if method != "Exec":
            raise
        return answer()
