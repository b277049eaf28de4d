"""What a build tells while it runs, and in which order a reader sees it.

Rule: stages run side by side, but their output is shown whole and in the order of the file: the first unfinished stage
speaks, the others wait in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

Json = dict[str, Any]


class StageLog:
    """The messages of one stage."""

    def __init__(self, owner: Progress, position: int) -> None:
        self._owner = owner
        self._position = position
        self.waiting: list[Json] = []
        self.ended = False

    def say(self, message: Json) -> None:
        """Tell ``message`` now, or when it is this stage's turn."""
        self.waiting.append(message)
        self._owner.flush()

    def text(self, text: str) -> None:
        """A line of the classic builder's stream."""
        self.say({"stream": text})

    def end(self) -> None:
        """Nothing more comes from this stage."""
        self.ended = True
        self._owner.flush()


class Progress:
    """Messages of a build, ordered by stage."""

    def __init__(self) -> None:
        self._stages: list[StageLog] = []
        self._queue: asyncio.Queue[Json | None] = asyncio.Queue()
        self._turn = 0

    def stage(self) -> StageLog:
        """The log of the next stage in order of the file."""
        log = StageLog(self, len(self._stages))
        self._stages.append(log)
        return log

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
