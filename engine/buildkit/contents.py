"""Contents of files that clients have sent before: a second build of a directory asks only for what has changed.

Rule: a file is the same when its path, size, mode and time are, and its time is one that tells: times of whole seconds
(archives, clamped times) and those of the moment of the transfer may stand for other contents, and are asked for again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from engine.build.trees import Node

KEPT_DIRECTORIES = 16
KEPT_BYTES = 4 << 30
RECENT_NS = 100_000_000


class Signature(NamedTuple):
    """What a file looks like from outside."""

    size: int
    mode: int
    mtime: int


class Place(NamedTuple):
    """Where the content of a file is, and its SHA-256 in hex."""

    offset: int
    size: int
    digest: str


class Contents:
    """The contents of one directory of one client, in a file without a name."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        self._known: dict[str, tuple[Signature, Place]] = {}
        self.end = 0
        self.users = 0
        self.kept = False

    def find(self, path: str, node: Node) -> Place | None:
        """The content of ``path`` if the client has sent it before."""
        known = self._known.get(path)
        return known[1] if known is not None and known[0] == (node.size, node.mode, node.mtime) else None

    def reserve(self, size: int) -> int:
        """Room for ``size`` bytes."""
        at = self.end
        self.end += size
        return at

    def put(self, path: str, node: Node, place: Place) -> None:
        """Remember the content of ``path``, if its time says enough."""
        whole = place.size == node.size
        if whole and node.mtime % 10**9 and abs(time.time_ns() - node.mtime) > RECENT_NS:
            self._known[path] = Signature(node.size, node.mode, node.mtime), place
        else:
            self._known.pop(path, None)

    def live(self) -> int:
        """Bytes that a next build may use."""
        return sum(place.size for _, place in self._known.values())

    def done(self) -> None:
        """One user less; the file goes with the last one unless it is kept."""
        self.users -= 1
        self.close_unused()

    def close_unused(self) -> None:
        """Give the disk space back when nobody needs it."""
        if not self.users and not self.kept and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class ContentStores:
    """Those of the directories built last."""

    def __init__(self, spool: Callable[[], str]) -> None:
        """``spool`` gives fresh names for files."""
        self.spool = spool
        self._stores: OrderedDict[tuple[str, str], Contents] = OrderedDict()

    def use(self, shared_key: str, directory: str) -> Contents:
        """The store of a directory; its user says ``done``. A client without a key gets one of its own."""
        key = shared_key, directory
        store = self._stores.get(key) if shared_key else None
        if store is not None and store.end > 2 * store.live() + (64 << 20):
            # Most of it is what files held once.
            self._drop(key)
            store = None
        if store is None:
            store = Contents(self.spool())
            if shared_key:
                store.kept = True
                self._stores[key] = store
        if shared_key:
            self._stores.move_to_end(key)
        store.users += 1
        self._shrink(key)
        return store

    def _shrink(self, newest: tuple[str, str]) -> None:
        def too_much() -> bool:
            return len(self._stores) > KEPT_DIRECTORIES or sum(s.end for s in self._stores.values()) > KEPT_BYTES

        while too_much() and (oldest := next(iter(self._stores))) != newest:
            self._drop(oldest)

    def _drop(self, key: tuple[str, str]) -> None:
        store = self._stores.pop(key)
        store.kept = False
        store.close_unused()

    def size(self) -> int:
        """Bytes on disk."""
        return sum(store.end for store in self._stores.values())

    def clear(self) -> int:
        """Forget everything; bytes given back once no build reads them."""
        freed = self.size()
        for key in list(self._stores):
            self._drop(key)
        return freed

    close = clear


class Arriving:
    """The content of one file while it comes in."""

    def __init__(self, contents: Contents, node: Node) -> None:
        self._contents = contents
        self._left = node.size
        self._offset = self._at = contents.reserve(node.size)
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """The next bytes; a file that grew since it was announced is cut there."""
        view = memoryview(data)[: self._left]
        self._digest.update(view)
        self._left -= len(view)
        while view:
            written = os.pwrite(self._contents.fd, view, self._at)
            self._at += written
            view = view[written:]

    def finish(self) -> Place:
        """The whole of it; shorter than announced when the file shrank."""
        return Place(self._offset, self._at - self._offset, self._digest.hexdigest())
