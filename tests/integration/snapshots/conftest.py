"""Snapshotters on a data root of their own, and their mounts made where nobody else sees them."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from google.protobuf.message import Message

from containerd_py.diff import mounting
from containerd_py.interfaces import Mount, Scope
from containerd_py.metadata.database import Database
from containerd_py.snapshots.base import DirectorySnapshotter
from containerd_py.snapshots.native import NativeSnapshotter
from containerd_py.snapshots.overlay import OverlaySnapshotter

T = TypeVar("T")
KINDS: dict[str, type[DirectorySnapshotter]] = {"overlayfs": OverlaySnapshotter, "native": NativeSnapshotter}
SCOPE = Scope("default")


class World:
    """One snapshotter with its database; ``reopen`` starts it anew, as after a crash."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self._kind = kind
        self.events: list[tuple[str, str, Message]] = []
        self.database = Database(str(root / "meta.db"))
        self.snapshotter = self.open()

    def open(self) -> DirectorySnapshotter:
        return KINDS[self._kind](str(self.root / self._kind), self.database, self._publish)

    def reopen(self) -> DirectorySnapshotter:
        self.snapshotter = self.open()
        return self.snapshotter

    def _publish(self, namespace: str, topic: str, event: Message) -> None:
        self.events.append((namespace, topic, event))

    def directories(self) -> list[str]:
        return sorted(os.listdir(self.snapshotter.directory))


def in_mounts(mounts: Sequence[Mount], work: Callable[[Path], T]) -> T:
    """``work`` on the mounted snapshot, in a thread with a mount namespace of its own."""
    target = tempfile.mkdtemp(prefix="gantry-mount-")
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            mounting.private_namespace()
            mounting.mount_all([[m.type, m.source, m.target, list(m.options)] for m in mounts], target)
            results.append(work(Path(target)))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    shutil.rmtree(target)
    if failures:
        raise failures[0]
    return results[0]


@pytest.fixture(params=sorted(KINDS))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, request.param)
    yield made
    made.database.close()
