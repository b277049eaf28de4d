"""Docker's event stream: a bounded history for ``since``/``until`` and live subscribers.

Rule: ``publish`` never waits; a subscriber that falls ``QUEUE_LIMIT`` events behind is cut off, not waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator

import msgspec

HISTORY = 256
"""Events kept for replay, as many as dockerd keeps."""

QUEUE_LIMIT = 8192


class Actor(msgspec.Struct, frozen=True, rename="pascal"):
    """What an event is about."""

    id: str = msgspec.field(name="ID")
    attributes: dict[str, str]


class Event(msgspec.Struct, frozen=True):
    """One message of ``GET /events``; ``time_nano`` is nanoseconds since the epoch."""

    type: str = msgspec.field(name="Type")
    action: str = msgspec.field(name="Action")
    actor: Actor = msgspec.field(name="Actor")
    scope: str
    time: int
    time_nano: int = msgspec.field(name="timeNano")
    status: str | None = None
    id: str | None = None
    from_: str | None = msgspec.field(default=None, name="from")


class EventBus:
    """Publishes events of the engine to any number of subscribers."""

    def __init__(self) -> None:
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._queues: set[asyncio.Queue[Event | None]] = set()

    def publish(self, kind: str, action: str, actor_id: str, attributes: dict[str, str] | None = None) -> Event:
        """Send one event, e.g. ``publish("container", "start", id, {"image": …, "name": …})``."""
        now = time.time_ns()
        attributes = dict(attributes or {})
        legacy = kind in ("container", "image")
        event = Event(
            type=kind,
            action=action,
            actor=Actor(actor_id, attributes),
            scope="local",
            time=now // 1_000_000_000,
            time_nano=now,
            status=action if legacy else None,
            id=actor_id if legacy else None,
            from_=attributes.get("image") if kind == "container" else None,
        )
        self._history.append(event)
        for queue in tuple(self._queues):
            if queue.qsize() >= QUEUE_LIMIT:
                self._queues.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)
        return event

    @property
    def listeners(self) -> int:
        """How many subscribers there are."""
        return len(self._queues)

    def history(self, since_ns: int, until_ns: int) -> list[Event]:
        """Kept events with ``since_ns <= time <= until_ns``."""
        return [e for e in self._history if since_ns <= e.time_nano <= until_ns]

    async def subscribe(self, since_ns: int | None = None) -> AsyncIterator[Event]:
        """Kept events from ``since_ns`` on (none without it), then live ones, with no gap and no double."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        past = self.history(since_ns, time.time_ns()) if since_ns is not None else []
        self._queues.add(queue)
        try:
            for event in past:
                yield event
            while (live := await queue.get()) is not None:
                yield live
        finally:
            self._queues.discard(queue)
