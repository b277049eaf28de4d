"""Stores over a temporary directory, for tests that need no daemon."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from containerd_py.content.store import Content
from containerd_py.gc.collector import GarbageCollector
from containerd_py.interfaces import Scope
from containerd_py.metadata.containers import Containers
from containerd_py.metadata.database import Database
from containerd_py.metadata.images import Images
from containerd_py.metadata.leases import Leases
from containerd_py.metadata.namespaces import Namespaces


class Events:
    """An exchange that remembers (namespace, topic)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def publish(self, namespace: str, topic: str, event: Message) -> None:
        self.seen.append((namespace, topic))

    def subscribe(self, filters: object = ()) -> AsyncIterator[object]:
        raise NotImplementedError


class Rooms:
    """Every store on one database."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events = Events()
        self.database = Database(str(root / "meta.db"))
        exchange: Any = self.events  # only publish is used
        self.collector = GarbageCollector(self.database, exchange)
        self.content = Content(self.database, str(root / "content"), exchange, self.collector)
        self.images = Images(self.database, exchange, self.collector)
        self.containers = Containers(self.database, exchange, self.collector)
        self.leases = Leases(self.database, self.collector)
        self.namespaces = Namespaces(self.database, exchange)
        self.collector.attach(self.content, {})

    def put(self, scope: Scope, data: bytes, labels: dict[str, str] | None = None) -> str:
        with self.content.writer(scope, f"put-{hash(data)}") as writer:
            writer.write(data)
            return writer.commit(labels=labels or {})

    def files(self) -> set[str]:
        return {path.name for path in (self.root / "content" / "blobs" / "sha256").iterdir()}


@contextlib.asynccontextmanager
async def rooms(root: Path) -> AsyncIterator[Rooms]:
    made = Rooms(root)
    try:
        yield made
    finally:
        await made.collector.close()
        await asyncio.to_thread(made.database.close)
