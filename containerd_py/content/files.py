"""Where blobs and ingests lie on disk.

Rule: a file below ``blobs/`` is whole, verified and synced before it gets its name; names are made from digests and
hashes only, never from what a client sent.

    blobs/<algorithm>/<hex>           a blob
    ingest/<sha256 of ns/ref>/data    bytes that arrived so far
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from oci import digest as digests


class OpenBlob:
    """The ``Blob`` of this store."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Files:
    """The directories below ``root``."""

    def __init__(self, root: str) -> None:
        self.root = root
        for name in ("blobs/sha256", "ingest"):
            os.makedirs(f"{root}/{name}", 0o700, exist_ok=True)

    def blob(self, digest: str) -> str:
        """Path of a blob. Raises ``InvalidArgument`` when ``digest`` is none."""
        algorithm, hexadecimal = digests.parse(digest)
        return f"{self.root}/blobs/{algorithm}/{hexadecimal}"

    def ingest(self, namespace: str, ref: str) -> str:
        """Directory of an ingest."""
        return f"{self.root}/ingest/{hashlib.sha256(f'{namespace}/{ref}'.encode()).hexdigest()}"

    def size(self, digest: str) -> int | None:
        """Bytes of a blob's file; None when there is none."""
        try:
            return os.stat(self.blob(digest)).st_size
        except FileNotFoundError:
            return None

    def publish(self, directory: str, digest: str) -> None:
        """Give an ingest's synced data the blob's name, for good."""
        path = self.blob(digest)
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        os.chmod(f"{directory}/data", 0o444)
        os.rename(f"{directory}/data", path)
        sync_directory(os.path.dirname(path))

    def blobs(self) -> Iterator[str]:
        """Digests of all files."""
        for algorithm in os.listdir(f"{self.root}/blobs"):
            for hexadecimal in os.listdir(f"{self.root}/blobs/{algorithm}"):
                yield f"{algorithm}:{hexadecimal}"

    def remove_blob(self, digest: str) -> None:
        """Idempotent."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.blob(digest))

    def sweep_ingests(self, keep: Iterable[str]) -> int:
        """Remove ingest directories that are not in ``keep``; how many."""
        known = {os.path.basename(path) for path in keep}
        gone = [name for name in os.listdir(f"{self.root}/ingest") if name not in known]
        for name in gone:
            remove_ingest(f"{self.root}/ingest/{name}")
        return len(gone)


def remove_ingest(directory: str) -> None:
    """Remove an ingest's directory. Idempotent."""
    shutil.rmtree(directory, ignore_errors=True)


def sync_directory(path: str) -> None:
    """Have renames in ``path`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
