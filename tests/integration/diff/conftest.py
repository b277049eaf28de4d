"""Layer workers and a content store on a private data root."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import stat
import tarfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from google.protobuf.message import Message

from containerd_py.content.store import Content
from containerd_py.diff.pool import LayerWorkers
from containerd_py.interfaces import Mount, Scope
from containerd_py.metadata.database import Database
from containerd_py.snapshots.base import DirectorySnapshotter
from containerd_py.snapshots.choose import snapshotters
from containerd_py.unpack import Unpacker
from oci import digest
from oci.errors import AlreadyExists
from oci.image import MEDIA_LAYER, Descriptor

T = TypeVar("T")
SCOPE = Scope("default")
_NOW = time.time_ns() - 3600 * 10**9


class Quiet:
    """An exchange and a collector that do nothing."""

    def publish(self, namespace: str, topic: str, event: Message) -> None: ...

    def subscribe(self, filters: Any = ()) -> Any: ...

    def schedule(self) -> None: ...

    def wake_at(self, time: int) -> None: ...

    async def collect(self) -> None: ...


class Stores:
    """Everything the unpacker works with, on one directory."""

    def __init__(self, root: Path, workers: LayerWorkers | None = None) -> None:
        """``workers`` that many tests share are not ended by ``close``."""
        self.root = root
        self._own = workers is None
        self.database = Database(str(root / "meta.db"))
        quiet = Quiet()
        self.content = Content(self.database, str(root / "content"), quiet, quiet)
        self.snapshotters: dict[str, DirectorySnapshotter] = snapshotters(str(root), self.database, quiet.publish)
        self.workers = workers or LayerWorkers(str(root / "workers"))
        self.unpacker = Unpacker(self.content, self.snapshotters, self.workers, self.database)

    def add(self, data: bytes, media_type: str = MEDIA_LAYER) -> Descriptor:
        with contextlib.suppress(AlreadyExists), self.content.writer(SCOPE, digest.of_bytes(data)) as writer:
            writer.write(data)
            writer.commit()
        return Descriptor(media_type, digest.of_bytes(data), len(data))

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def main() -> T:
            return await work()

        return asyncio.run(main())

    def apply(self, mounts: Sequence[Mount], data: bytes) -> str:
        """Apply a layer archive; its diff ID."""
        descriptor = self.add(data)

        async def work() -> str:
            with self.content.open(SCOPE, descriptor.digest) as blob:
                return (await self.workers.apply(mounts, blob.fd)).digest

        return self.run(work)

    def close(self) -> None:
        if self._own:
            self.workers.close()
        self.database.close()


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    made = Stores(tmp_path)
    yield made
    made.close()


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A plain tar of members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if data else None)
    return out.getvalue()


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One member: a file with ``data`` unless ``type`` says otherwise."""
    info = tarfile.TarInfo(name)
    info.mode = 0o755 if fields.get("type") == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, **fields)


class Seen(NamedTuple):
    """What a tree shows of one path."""

    mode: int
    owner: tuple[int, int]
    content: bytes | str
    device: int
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[str, ...]
    mtime: int


def tree(root: Path) -> dict[str, Seen]:
    """Everything below ``root`` by relative path; hard links by the names that share a file."""
    paths = sorted(p for p in root.rglob("*"))
    inodes: dict[int, list[str]] = {}
    for path in paths:
        inodes.setdefault(path.lstat().st_ino, []).append(str(path.relative_to(root)))
    return {str(path.relative_to(root)): _seen(path, inodes) for path in paths}


def _seen(path: Path, inodes: dict[int, list[str]]) -> Seen:
    info = path.lstat()
    content: bytes | str = b""
    if stat.S_ISREG(info.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(info.st_mode):
        content = os.readlink(path)
    xattrs = tuple(
        sorted((n, os.getxattr(path, n, follow_symlinks=False)) for n in os.listxattr(path, follow_symlinks=False))
    )
    links = () if stat.S_ISDIR(info.st_mode) else tuple(inodes[info.st_ino])
    owner = (info.st_uid, info.st_gid)
    mtime = info.st_mtime_ns if info.st_mtime_ns < _NOW else _NOW  # set by the clock, not by the archive
    return Seen(info.st_mode, owner, content, info.st_rdev, xattrs, links, mtime)
