"""What a client is shown of a build: vertexes with times, statuses and logs, as BuildKit's Status call streams them.

Rule: everything is told as it happens and kept until the build is over, since clients may ask late.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator

from google.protobuf import timestamp_pb2

from engine.build.dockerfile.errors import Lines
from engine.buildkit.failures import CANCELED, text_of
from protos.buildkit import control_pb2, ops_pb2

MAX_LOG = 2 << 20
"""Bytes of output kept of one step, as much as BuildKit keeps."""

CLIPPED = b"[output clipped, log limit 2MiB reached]\n"
BATCH = 256
RULES = "https://docs.docker.com/go/dockerfile/rule/"


def rule_url(rule: str) -> str:
    """Where docker explains a build check."""
    words = "".join(f"-{char.lower()}" if char.isupper() else char for char in rule).lstrip("-")
    return f"{RULES}{words}/"


def now() -> timestamp_pb2.Timestamp:
    """This moment."""
    moment = timestamp_pb2.Timestamp()
    moment.GetCurrentTime()
    return moment


class Vertex:
    """One line of a client's display."""

    def __init__(self, status: Status, name: str) -> None:
        self._status = status
        digest = hashlib.sha256(f"{id(status)} {status.count} {name}".encode()).hexdigest()
        self._message = control_pb2.Vertex(digest=f"sha256:{digest}", name=name)
        self._logged = 0
        self._statuses: dict[str, timestamp_pb2.Timestamp] = {}

    @property
    def digest(self) -> str:
        return self._message.digest

    @property
    def running(self) -> bool:
        """Whether it has begun and is not over."""
        return self._message.HasField("started") and not self._message.HasField("completed")

    def announce(self) -> None:
        """It is there, whether it has begun or not."""
        told = control_pb2.Vertex()
        told.CopyFrom(self._message)
        self._status.tell(control_pb2.StatusResponse(vertexes=[told]))

    def start(self) -> None:
        """It begins."""
        self._message.started.CopyFrom(now())
        self.announce()

    def finish(self, *, cached: bool = False, error: str = "") -> None:
        """It is over."""
        for name in list(self._statuses):
            self.progress(name, done=True)
        self._message.completed.CopyFrom(now())
        self._message.cached = cached
        self._message.error = error
        self.announce()

    def log(self, data: bytes, stream: int = 1) -> None:
        """What its command wrote."""
        if self._logged > MAX_LOG:
            return
        self._logged += len(data)
        data = data if self._logged <= MAX_LOG else CLIPPED
        entry = control_pb2.VertexLog(vertex=self.digest, timestamp=now(), stream=stream, msg=data)
        self._status.tell(control_pb2.StatusResponse(logs=[entry]))

    def progress(self, name: str, current: int = 0, total: int = 0, *, done: bool = False) -> None:
        """How far a part of it, called ``name``, has got."""
        moment = now()
        started = self._statuses.setdefault(name, moment)
        entry = control_pb2.VertexStatus(
            ID=name, vertex=self.digest, current=current, total=total, timestamp=moment, started=started
        )
        if done:
            self._statuses.pop(name)
            entry.completed.CopyFrom(moment)
        self._status.tell(control_pb2.StatusResponse(statuses=[entry]))

    def warn(self, text: str, rule: str, filename: str, source: bytes, lines: Lines | None) -> None:
        """A finding of the build checks."""
        entry = control_pb2.VertexWarning(vertex=self.digest, level=1, short=text.encode())
        if lines is not None:
            entry.info.CopyFrom(ops_pb2.SourceInfo(filename=filename, data=source, language="Dockerfile"))
            start, end = ops_pb2.Position(line=lines.first), ops_pb2.Position(line=lines.last)
            entry.ranges.append(ops_pb2.Range(start=start, end=end))
        if rule:
            entry.url = rule_url(rule)
        self._status.tell(control_pb2.StatusResponse(warnings=[entry]))


class Status:
    """The events of one build."""

    def __init__(self) -> None:
        self._events: list[control_pb2.StatusResponse] = []
        self._changed = asyncio.Event()
        self._over = False
        self.count = 0

    def vertex(self, name: str) -> Vertex:
        """A new vertex, not told of yet."""
        self.count += 1
        return Vertex(self, name)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Vertex]:
        """A vertex that lasts as long as the block."""
        vertex = self.vertex(name)
        vertex.start()
        try:
            yield vertex
        except asyncio.CancelledError:
            vertex.finish(error=CANCELED)
            raise
        except Exception as error:
            vertex.finish(error=text_of(error))
            raise
        vertex.finish()

    def tell(self, event: control_pb2.StatusResponse) -> None:
        """One more event."""
        self._events.append(event)
        self._changed.set()

    def close(self) -> None:
        """There are no more."""
        self._over = True
        self._changed.set()

    async def stream(self) -> AsyncIterator[control_pb2.StatusResponse]:
        """All events from the first one, several in a message, until ``close``."""
        at = 0
        while True:
            changed = self._changed
            if at < len(self._events):
                batch = control_pb2.StatusResponse()
                for event in self._events[at : at + BATCH]:
                    batch.MergeFrom(event)
                    at += 1
                yield batch
                continue
            if self._over:
                return
            if changed.is_set():
                self._changed = changed = asyncio.Event()
            await changed.wait()
