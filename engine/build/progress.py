"""What a build tells while it runs, and in which order a reader sees it.

Rule: stages run side by side. The classic stream shows the output of each whole and in the order of the file: the first
unfinished stage speaks, the others wait in memory. A reader who asks for steps gets every event when it happens, with
the number of its step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.build.dockerfile.errors import Warning

if TYPE_CHECKING:
    from engine.build.plan import Plan

Json = dict[str, Any]

RED, PLAIN = "\x1b[91m", "\x1b[0m"

STEP = "gantry.step"
"""``id`` of step events. Their ``aux``: ``number`` and ``total``; with the first event of a step its ``name``; then
``output`` (text), or ``state``: ``cached``, ``done``, ``failed``, ``canceled``."""


class Step(NamedTuple):
    """One line of the plan: ``number`` of ``total`` in the build, ``name`` as a display shows it."""

    number: int
    total: int
    name: str
    original: str


class StageLog:
    """The messages of one stage."""

    def __init__(self, owner: Progress) -> None:
        self._owner = owner
        self._step: Step | None = None
        self._state = "done"
        self.waiting: list[Json] = []
        self.ended = False

    def begin(self, step: Step) -> None:
        """``step`` begins; the one before it is done."""
        self.finish(self._state)
        self._step, self._state = step, "done"
        self._owner.step(step, {"name": step.name})
        self.text(f"Step {step.number}/{step.total} : {step.original}\n")

    def cached(self) -> None:
        """The current step's result was known."""
        self._state = "cached"
        self.text(" ---> Using cache\n")

    def finish(self, state: str) -> None:
        """The current step is over."""
        if self._step is not None:
            self._owner.step(self._step, {"state": state})
            self._step = None

    def output(self, text: str, *, error: bool = False) -> None:
        """What the current step's command wrote; ``error``: to stderr, which the classic stream shows in red."""
        if self._step is not None:
            self._owner.step(self._step, {"output": text})
        self.text(f"{RED}{text}{PLAIN}" if error else text)

    def say(self, message: Json) -> None:
        """Tell ``message`` now, or when it is this stage's turn."""
        self.waiting.append(message)
        self._owner.flush()

    def text(self, text: str) -> None:
        """A line of the classic builder's stream, of no use to a reader of steps."""
        if not self._owner.steps:
            self.say({"stream": text})

    def end(self, state: str = "") -> None:
        """Nothing more comes from this stage; ``state`` is how its last step ended, if not well."""
        self.finish(state or self._state)
        self.ended = True
        self._owner.flush()


class Progress:
    """Messages of a build, ordered by stage; with ``steps`` as events, in the order they happen."""

    def __init__(self, *, steps: bool = False) -> None:
        self.steps = steps
        self._stages: list[StageLog] = []
        self._queue: asyncio.Queue[Json | None] = asyncio.Queue()
        self._turn = 0

    def stage(self) -> StageLog:
        """The log of the next stage in order of the file."""
        log = StageLog(self)
        self._stages.append(log)
        return log

    def silent(self) -> StageLog:
        """A log that nobody reads."""
        return StageLog(Progress(steps=True))

    def step(self, step: Step, event: Json) -> None:
        """Tell an event of ``step``, if the reader wants events."""
        if self.steps:
            self.say({"id": STEP, "aux": {"number": step.number, "total": step.total, **event}})

    def flush(self) -> None:
        """Hand on what may be shown now."""
        while self._turn < len(self._stages):
            current = self._stages[self._turn]
            for message in current.waiting:
                self._queue.put_nowait(message)
            current.waiting.clear()
            if not current.ended:
                return
            self._turn += 1

    def say(self, message: Json) -> None:
        """Tell something that belongs to no stage, at once."""
        self._queue.put_nowait(message)

    def planned(self, plan: Plan) -> None:
        """The build's stages are known; nothing has begun."""

    def warn(self, warning: Warning) -> None:
        """Tell a finding of the build checks."""
        self.say({"stream": f"[Warning] {warning.rule}: {warning.text} (line {warning.lines.first})\n"})

    def close(self) -> None:
        """The end; what stages still hold is shown first."""
        for stage in self._stages:
            stage.ended = True
        self.flush()
        self._queue.put_nowait(None)

    async def messages(self) -> AsyncIterator[Json]:
        """Everything, until ``close``."""
        while (message := await self._queue.get()) is not None:
            yield message
