"""The build context: a tar stream becomes an index in memory and one file of bytes on disk.

Rule: nothing of the context is ever unpacked by name, so its names can do no harm; contents are hashed while they
arrive, so that a build that finds every step in its cache reads nothing again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import BinaryIO

from engine.build.trees import Node
from oci import tar
from oci.errors import DataLoss, InvalidArgument
from oci.ignorefile import IgnoreRules

Read = Callable[[int], bytes]

KINDS = {
    tar.SYMLINK: stat.S_IFLNK, tar.CHAR: stat.S_IFCHR, tar.BLOCKDEV: stat.S_IFBLK, tar.DIRECTORY: stat.S_IFDIR,
    tar.FIFO: stat.S_IFIFO,
}  # fmt: skip
PIECE = 1 << 20
SMALL = 200
IGNORE_FILE = ".dockerignore"
_FROM_ELSEWHERE = re.compile(r"\.dockerfile\.[0-9a-f]{20}")
ROOT = Node(stat.S_IFDIR | 0o755)


class Context:
    """A ``Tree`` over a received context. Close it when the build is over."""

    def __init__(self, path: str) -> None:
        """``path`` names the file that will hold the contents; it is removed from its directory at once."""
        self._path = path
        self._spools = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        self._nodes: dict[str, Node] = {"": ROOT}
        self._children: dict[str, set[str]] = {"": set()}
        self._places: dict[str, tuple[int, str]] = {}
        self._xattrs: dict[str, dict[str, bytes]] = {}
        self._end = 0
        self.left_out = IgnoreRules(())
        """What was dropped by ``ignore``."""

    def close(self) -> None:
        """Give the disk space back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def is_small(self) -> bool:
        """Whether going through the index takes less time than asking another thread to do it."""
        return len(self._nodes) <= SMALL

    async def prepare(self, sources: Iterable[str]) -> None:
        """Called before ``sources`` (patterns of COPY) are looked at; everything is here already."""

    def receive(self, read: Read) -> None:
        """Take the whole plain tar that ``read`` gives. Raises ``DataLoss``, ``InvalidArgument``, ``OSError``.

        Blocking.
        """
        reader = tar.TarReader(read)
        try:
            for entry in reader:
                self._take(reader, entry)
        except DataLoss as error:
            raise InvalidArgument(f"invalid build context: {error.message}", hint=error.hint) from error

    def add_file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Put one file into the context (a Dockerfile that came on its own)."""
        with self.adding(path, mode) as write:
            write(content)

    def sibling(self) -> str:
        """A fresh name beside our own file, for another context of the same build."""
        self._spools += 1
        return f"{self._path}.{self._spools}"

    @contextlib.contextmanager
    def adding(self, path: str, mode: int, mtime: int = 0) -> Iterator[Callable[[bytes], None]]:
        """Put one file into the context piece by piece; ``mtime`` in seconds."""
        began, digest = self._end, hashlib.sha256()

        def write(data: bytes) -> None:
            digest.update(data)
            self._write(data)

        yield write
        self._insert(path, Node(stat.S_IFREG | mode, self._end - began, mtime * 10**9))
        self._places[path] = (began, digest.hexdigest())

    def add_path(self, path: str, source: str) -> None:
        """Put the file, link or directory ``source`` of this host into the context. Blocking."""
        status = os.lstat(source)
        if stat.S_ISLNK(status.st_mode):
            self._insert(path, Node(status.st_mode, link=os.readlink(source)))
        elif stat.S_ISDIR(status.st_mode):
            self._insert(path, Node(stat.S_IFDIR | stat.S_IMODE(status.st_mode)))
        elif stat.S_ISREG(status.st_mode):
            with open(source, "rb") as file, self.adding(path, stat.S_IMODE(status.st_mode)) as write:
                while piece := file.read(PIECE):
                    write(piece)

    def _take(self, reader: tar.TarReader, entry: tar.Entry) -> None:
        path = posixpath.normpath("/" + entry.name).lstrip("/")
        if not path:
            return
        if entry.kind == tar.HARDLINK:
            self._hardlink(path, posixpath.normpath("/" + entry.link).lstrip("/"))
            return
        if entry.sparse is not None:
            raise InvalidArgument(
                f"the build context holds a sparse member: {entry.name}", hint="pack it without --sparse"
            )
        kind = KINDS.get(entry.kind, stat.S_IFREG)
        node = Node(
            kind | entry.mode,
            entry.size if kind == stat.S_IFREG else 0,
            entry.mtime,
            entry.uid,
            entry.gid,
            entry.link if kind == stat.S_IFLNK else "",
            os.makedev(entry.major, entry.minor) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        )
        self._insert(path, node)
        if entry.xattrs:
            self._xattrs[path] = dict(entry.xattrs)
        if kind == stat.S_IFREG:
            self._contents(reader, path)

    def _contents(self, reader: tar.TarReader, path: str) -> None:
        digest = hashlib.sha256()
        began = self._end
        for piece in reader.data():
            digest.update(piece)
            self._write(piece)
        self._places[path] = (began, digest.hexdigest())

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, self._end)
            self._end += written
            view = view[written:]

    def _hardlink(self, path: str, target: str) -> None:
        node = self._nodes.get(target)
        if node is None or target not in self._places:
            raise DataLoss(f"the build context links {path} to {target}, which did not come before it")
        self._insert(path, node)
        self._places[path] = self._places[target]

    def insert(self, path: str, node: Node, xattrs: Mapping[str, bytes]) -> None:
        """Put a file into the index alone; where its bytes are is the caller's to know."""
        self._insert(path, node)
        if xattrs:
            self._xattrs[path] = dict(xattrs)

    def replace(self, other: Context) -> None:
        """Take over the index of ``other``."""
        self._nodes, self._children, self._xattrs = other._nodes, other._children, other._xattrs

    def _insert(self, path: str, node: Node) -> None:
        parent, _, name = path.rpartition("/")
        above = self._nodes.get(parent)
        if above is None:
            self._insert(parent, ROOT)
        elif not above.is_dir:
            raise InvalidArgument(f"the build context has {path} below {parent}, which is no directory")
        self._children[parent].add(name)
        before = self._nodes.get(path)
        if before is not None and before.is_dir and not node.is_dir and self._children[path]:
            raise InvalidArgument(f"the build context replaces the directory {path} by a file")
        self._nodes[path] = node
        self._places.pop(path, None)
        if node.is_dir:
            self._children.setdefault(path, set())

    def ignore(self, dockerfile: str) -> None:
        """Apply ``<Dockerfile>.dockerignore``, else ``.dockerignore``: what they name leaves the context.

        A Dockerfile that a client put in from elsewhere, under a random name, leaves it too.
        """
        if _FROM_ELSEWHERE.fullmatch(dockerfile):
            self._remove(dockerfile)
        for name in (f"{dockerfile}{IGNORE_FILE}", IGNORE_FILE):
            node = self._nodes.get(name)
            if node is not None and node.is_file:
                with self.open(name) as file:
                    self.left_out = IgnoreRules(file.read().decode(errors="replace").splitlines())
                self._drop(self.left_out)
                return

    def _drop(self, rules: IgnoreRules) -> None:
        """Deepest first, so that a directory is empty by the time it is looked at; one that holds what stays, stays."""
        for path in sorted(self._nodes, key=lambda p: p.count("/"), reverse=True) if rules else ():
            if path and not self._children.get(path) and rules.ignored(path):
                self._remove(path)

    def _remove(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        self._children[parent].discard(name)
        for table in (self._nodes, self._children, self._places, self._xattrs):
            table.pop(path, None)

    def node(self, path: str) -> Node | None:
        """What is at ``path``."""
        return self._nodes.get(path)

    def children(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        return sorted(self._children.get(path, ()))

    def open(self, path: str) -> BinaryIO:
        """The content of a file."""
        offset, _ = self._places[path]
        return io.BufferedReader(Window(self._fd, offset, self._nodes[path].size), 1 << 16)

    def digest(self, path: str) -> str:
        """Hex SHA-256 of a file, known since it arrived."""
        return self._places[path][1]

    def xattrs(self, path: str) -> dict[str, bytes]:
        """What the archive said of them."""
        return self._xattrs.get(path, {})


class Window(io.RawIOBase):
    """A part of an open file, read by position. ``fd`` stays its owner's."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._at, self._end = fd, offset, offset + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override] # the stub wants any buffer
        view = memoryview(buffer)[: max(0, self._end - self._at)]
        data = os.pread(self._fd, len(view), self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
