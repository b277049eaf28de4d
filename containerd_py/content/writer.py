"""One ingest while it is written.

Rule: bytes are hashed as they arrive, and what the hash has seen is exactly what the file holds. A blob that another
namespace has already is not sent again: its file is linked in as the ingest's data (``shared``), so that it cannot
vanish meanwhile, and is never written to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NamedTuple, Self

from containerd_py.content.files import Files
from containerd_py.interfaces import IngestStatus, Scope
from oci import digest as digests
from oci import errors

CHUNK = 1 << 20

Commit = Callable[["Writer", str, Mapping[str, str]], None]
"""Make the writer's synced bytes the blob of that digest; ``AlreadyExists`` when it is one."""


class Expectation(NamedTuple):
    """What was said of an ingest when it began: bytes in all (0: unknown), digest ("": unknown), and when."""

    total: int
    expected: str
    started_at: int


class Writer:
    """The ``ContentWriter`` of this store. Use it from one thread at a time."""

    def __init__(
        self,
        scope: Scope,
        ref: str,
        directory: str,
        expectation: Expectation,
        commit: Commit,
        release: Callable[[], None],
    ) -> None:
        self.scope = scope
        self.ref = ref
        self.directory = directory
        self.total, self.expected, self.started_at = expectation
        self.shared = False
        self._commit = commit
        self._release: Callable[[], None] | None = release
        self._algorithm = digests.parse(self.expected)[0] if self.expected else "sha256"
        self._hash: digests.Hasher = hashlib.new(self._algorithm)
        self._fd = -1
        self.offset = 0

    @property
    def path(self) -> str:
        return f"{self.directory}/data"

    def open(self) -> None:
        """Take up what lies on disk, hashing it again. Blocking."""
        os.makedirs(self.directory, 0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_nlink > 1:
                os.unlink(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._rehash(os.fstat(self._fd).st_size)

    def share(self, files: Files) -> bool:
        """Link the expected blob in as this ingest's data; False when its file is not there."""
        os.makedirs(self.directory, 0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        try:
            os.link(files.blob(self.expected), self.path)
        except FileNotFoundError:
            return False
        self.offset = os.stat(self.path).st_size
        self.shared = True
        return True

    def _rehash(self, size: int) -> None:
        self._hash = hashlib.new(self._algorithm)
        self.offset = 0
        while self.offset < size:
            data = os.pread(self._fd, min(CHUNK, size - self.offset), self.offset)
            if not data:
                break
            self._hash.update(data)
            self.offset += len(data)

    def write(self, data: bytes) -> int:
        self._require_open()
        if self.shared:
            if data:
                raise errors.OutOfRange(f"ingest {self.ref!r}: is whole already at {self.offset} bytes")
            return self.offset
        view = memoryview(data)
        at = self.offset
        while view:
            count = os.pwrite(self._fd, view, at)
            at += count
            view = view[count:]
        self._hash.update(data)
        self.offset = at
        return at

    def truncate(self, size: int) -> None:
        self._require_open()
        if size > self.offset:
            raise errors.OutOfRange(f"ingest {self.ref!r}: cannot cut {self.offset} bytes to {size}")
        if size == self.offset:
            return
        if self.shared:
            self.shared = False
            self.open()
            if size:
                raise errors.OutOfRange(f"ingest {self.ref!r}: starts again from 0")
            return
        os.ftruncate(self._fd, size)
        self._rehash(size)

    def digest(self) -> str:
        return self.expected if self.shared else f"{self._algorithm}:{self._hash.hexdigest()}"

    def status(self) -> IngestStatus:
        updated = self.started_at
        with contextlib.suppress(OSError):
            updated = os.stat(self.path).st_mtime_ns
        return IngestStatus(self.ref, self.offset, self.total, self.expected, self.started_at, updated)

    def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] = {}) -> str:
        self._require_open()
        expected = expected or self.expected
        if size > 0 and size != self.offset:
            raise errors.FailedPrecondition(
                f"ingest {self.ref!r}: unexpected commit size {self.offset}, expected {size}"
            )
        found = self.digest()
        if expected and expected.partition(":")[0] != self._algorithm:
            found = self._digest_by(digests.parse(expected)[0])
        if expected and found != expected:
            raise errors.FailedPrecondition(
                f"ingest {self.ref!r}: unexpected commit digest {found}, expected {expected}"
            )
        if not self.shared:
            os.fsync(self._fd)
        try:
            self._commit(self, found, labels)
        except errors.AlreadyExists:
            self.close()
            raise
        self.close()
        return found

    def _digest_by(self, algorithm: str) -> str:
        """The digest by another algorithm than the one that ran along."""
        running = hashlib.new(algorithm)
        with open(self.path, "rb") as file:
            while data := file.read(CHUNK):
                running.update(data)
        return f"{algorithm}:{running.hexdigest()}"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        release, self._release = self._release, None
        if release is not None:
            release()

    def _require_open(self) -> None:
        if self._release is None:
            raise errors.FailedPrecondition(f"ingest {self.ref!r}: the writer is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
