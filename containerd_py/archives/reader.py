"""Reading an image archive: every file becomes a blob as it streams by, the documents say afterwards what they are.

Rule: names are strings in a table, never paths on this machine; sizes of documents and headers are bounded; nothing is
believed before it was hashed. Works in a thread: everything here blocks.
Source: image-spec ``image-layout.md``; Docker's image spec 1.2 (``manifest.json``).
"""

from __future__ import annotations

import bz2
import io
import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable
from typing import IO, NamedTuple, Protocol

from oci import digest as digests
from oci.errors import DataLoss, FailedPrecondition, InvalidArgument

DOCUMENTS = ("oci-layout", "index.json", "manifest.json", "repositories")
PIECE = 1 << 20
MAX_DOCUMENT = 8 << 20
MAX_HEADER = 1 << 20
"""Bytes of an extended header: a longer one is an attack on memory."""
MAX_ENTRIES = 200_000
_BLOB = re.compile(r"blobs/([a-z0-9]+)/([a-f0-9]+)")
_NOT_NEEDED = re.compile(r"[0-9a-f]{64}/(VERSION|json)")


class Source(Protocol):
    """The bytes of an archive."""

    def read(self, size: int = -1, /) -> bytes: ...


class Stored(NamedTuple):
    """A file that became a blob; ``head`` are its first bytes, by which compression is known."""

    digest: str
    size: int
    head: bytes


class Contents(NamedTuple):
    """What an archive held: documents by name, files by name, and links by name (to a name inside)."""

    documents: dict[str, bytes]
    files: dict[str, Stored]
    links: dict[str, str]

    def find(self, name: str) -> Stored:
        """The file ``name`` means, through links. Raises ``InvalidArgument``."""
        seen: set[str] = set()
        at = clean(name)
        while at in self.links and at not in seen:
            seen.add(at)
            at = self.links[at]
        if at not in self.files:
            raise InvalidArgument(f"archive is incomplete: it names {name!r} but has no such file")
        return self.files[at]


Store = Callable[[Source, int, str, str], Stored]
"""Stores ``size`` bytes of a source, verified against a digest ("" for none); the last is the name for messages."""


def clean(name: str) -> str:
    """A name as the table knows it. Raises ``InvalidArgument`` when it leads out of the archive."""
    found = posixpath.normpath(name.lstrip("/")) if name.strip("/") else "."
    if found == ".." or found.startswith("../"):
        raise InvalidArgument(f"archive entry {name!r} leads out of the archive")
    return found


def read_archive(source: Source, store: Store) -> Contents:
    """Read a whole archive. Raises ``DataLoss`` when it is corrupt, ``InvalidArgument`` when it is no tar."""
    contents = Contents({}, {}, {})
    count = 0
    try:
        with tarfile.open(fileobj=plain(source), mode="r|", bufsize=PIECE, tarinfo=_Entry) as tar:
            while (entry := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # a stream's members are kept for ever otherwise
                count += 1
                if count > MAX_ENTRIES:
                    raise FailedPrecondition(f"archive has more than {MAX_ENTRIES} entries")
                _take(contents, tar, entry, store)
    except (tarfile.ReadError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, OverflowError) as error:
        if not count:
            raise InvalidArgument(f"invalid archive: {error}") from error
        raise DataLoss(f"archive is corrupt or cut short: {error}") from error
    return contents


class _Entry(tarfile.TarInfo):
    """An entry whose extended headers are bounded before they are read into memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
        if self.type in (*extended, tarfile.GNUTYPE_LONGLINK) and not 0 <= self.size <= MAX_HEADER:
            raise FailedPrecondition(f"archive has an extended header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]  # tarfile's documented hook has no stub


def _take(contents: Contents, tar: tarfile.TarFile, entry: tarfile.TarInfo, store: Store) -> None:
    name = clean(entry.name)
    if entry.issym():
        contents.links[name] = clean(posixpath.join(posixpath.dirname(name), entry.linkname))
    elif entry.islnk():
        contents.links[name] = clean(entry.linkname)
    elif entry.isreg() and not _NOT_NEEDED.fullmatch(name):
        file = tar.extractfile(entry)
        assert file is not None
        if name in DOCUMENTS:
            contents.documents[name] = _document(file, entry.size, name)
        else:
            contents.files[name] = store(file, entry.size, _expected(name), name)


def _document(file: IO[bytes], size: int, name: str) -> bytes:
    if size > MAX_DOCUMENT:
        raise FailedPrecondition(f"{name} in the archive has {size} bytes, documents have at most {MAX_DOCUMENT}")
    data = file.read()
    if len(data) != size:
        raise DataLoss(f"archive is cut short within {name}")
    return data


def _expected(name: str) -> str:
    match = _BLOB.fullmatch(name)
    if match is None:
        return ""
    digest = f"{match[1]}:{match[2]}"
    digests.parse(digest)
    return digest


# Compression around the whole archive


def plain(source: Source) -> IO[bytes]:
    """``source`` without the gzip, zstd, xz or bzip2 around it, as a file that can only be read forward."""
    head = _exactly(source, 6)
    joined = _Joined(head, source)
    if head.startswith(b"\x1f\x8b"):
        return _buffered(_Inflated(joined, lambda: zlib.decompressobj(31)))
    if head.startswith(b"\xfd7zXZ\x00"):
        return _buffered(_Inflated(joined, lambda: lzma.LZMADecompressor(memlimit=256 << 20)))
    if head.startswith(b"BZh"):
        return _buffered(_Inflated(joined, bz2.BZ2Decompressor))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        return _buffered(
            _Inflated(joined, lambda: zstandard.ZstdDecompressor(max_window_size=128 << 20).decompressobj())
        )
    return _buffered(joined)


def _buffered(raw: io.RawIOBase) -> IO[bytes]:
    return io.BufferedReader(raw, PIECE)


def _exactly(source: Source, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := source.read(size - len(data))):
        data += piece
    return data


class _Joined(io.RawIOBase):
    """``head`` and then the rest of ``source``."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # the stub's Buffer has no length
        data = self._head[: len(buffer)] or self._source.read(len(buffer))
        self._head = self._head[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


class _Inflater(Protocol):
    @property
    def unused_data(self) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes) -> bytes: ...


class _Inflated(io.RawIOBase):
    """Plain bytes of a compressed source; members that follow each other count as one stream."""

    STEP = 32 << 10
    """Compressed bytes taken at once: what they become (up to a thousand times as much) is held in memory."""

    def __init__(self, source: _Joined, make: Callable[[], _Inflater]) -> None:
        self._source = source
        self._make = make
        self._inflater = make()
        self._begun = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # the stub's Buffer has no length
        while not self._ready:
            data = b""
            if self._inflater.eof:
                data, self._inflater, self._begun = self._inflater.unused_data, self._make(), False
            data = data or self._source.read(self.STEP) or b""
            if not data:
                if self._begun:
                    raise EOFError("compressed data ends early")
                return 0
            if not self._begun and not data.strip(b"\0"):
                continue  # padding behind the last member
            self._begun = True
            self._ready = memoryview(self._inflater.decompress(data))
            if self._inflater.eof and not self._inflater.unused_data:
                self._begun = False
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
