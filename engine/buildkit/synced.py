"""A client's directory as a build context: received when the first step wants files of it.

Rule: what the Dockerfile is seen to need is fetched at once; a step that turns out to need more gets everything.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from engine.build.context import Context, Window
from engine.build.trees import clean
from engine.buildkit.contents import Contents, ContentStores, Place
from engine.buildkit.filesync import File, receive
from engine.buildkit.sessions import Session
from engine.buildkit.status import Status, Vertex
from oci.ignorefile import IgnoreRules

TRANSFER = "transferring context:"
PROGRESS_BYTES = 256 << 10


class SyncedContext(Context):
    """One directory of one client; a ``Tree``, like every context, once ``prepare`` was called."""

    def __init__(
        self,
        path: str,
        session: Session,
        name: str,
        stores: ContentStores,
        status: Status,
        title: str,
        label: str = TRANSFER,
    ) -> None:
        """``path`` is a fresh name for a file, ``name`` that of the directory; ``title`` and ``label`` are shown."""
        super().__init__(path)
        self._session = session
        self._name = name
        self._stores = stores
        self._status = status
        self._title = title
        self._held: list[Contents] = []
        self._content: dict[str, tuple[Contents, Place]] = {}
        self._lock = asyncio.Lock()
        self._covered: set[str] | None = set()
        self._label = label
        self.vertex: Vertex | None = None
        self._excluded: Sequence[str] = ()
        self.expected: set[str] | None = set()

    def leave_out(self, patterns: Sequence[str]) -> None:
        """What a ``.dockerignore`` names stays with the client."""
        self._excluded, self.left_out = patterns, IgnoreRules(patterns)

    async def prepare(self, sources: Iterable[str]) -> None:
        """Have ``sources`` here, and with the first of them everything that is ``expected``."""
        wanted = reduced(sources)
        async with self._lock:
            if self._covered is None or (wanted is not None and wanted <= self._covered):
                return
            whole = wanted is None or self.expected is None or bool(self._covered)
            paths = None if whole else (wanted or set()) | (self.expected or set())
            await self._fetch(sorted(paths or ()))
            self._covered = paths

    async def _fetch(self, paths: Sequence[str]) -> None:
        contents = self._stores.use(self._session.shared_key, self._name)
        self._held.append(contents)
        with self._status.step(self._title) as vertex:
            self.vertex = vertex
            meter = _Meter(vertex, self._label)
            files = await receive(self._session, self._name, contents, meter, paths=paths, excluded=self._excluded)
            meter.finish()
        await asyncio.to_thread(self._index, files, contents)

    def _index(self, files: Sequence[File], contents: Contents) -> None:
        """All of ``files``; readers see the old index or the new one."""
        fresh = Context(self.sibling())
        fresh.close()
        for file in files:
            fresh.insert(file.path, file.node, file.xattrs)
        self._content = {file.path: (contents, file.place) for file in files if file.place is not None}
        self.replace(fresh)

    def open(self, path: str) -> BinaryIO:
        contents, place = self._content[path]
        return io.BufferedReader(Window(contents.fd, place.offset, place.size), 1 << 16)

    def digest(self, path: str) -> str:
        return self._content[path][1].digest

    def close(self) -> None:
        for contents in self._held:
            contents.done()
        self._held.clear()
        super().close()


class _Meter:
    """Shows how many bytes have come."""

    def __init__(self, vertex: Vertex, label: str) -> None:
        self._vertex, self._label = vertex, label
        self._count = self._shown = 0
        vertex.progress(label)

    def __call__(self, count: int) -> None:
        self._count = count
        if count - self._shown > PROGRESS_BYTES:
            self._shown = count
            self._vertex.progress(self._label, count)

    def finish(self) -> None:
        """All have."""
        self._vertex.progress(self._label, self._count, done=True)


def reduced(sources: Iterable[str]) -> set[str] | None:
    """Paths that lead to ``sources`` (patterns of COPY); None when only everything does."""
    found: set[str] = set()
    for source in sources:
        path = clean(source)
        if not path or "$" in path or "\\" in path or "**" in path:
            return None
        found.add(path)
    return found
