"""Compressed streams by their magic bytes: gzip, zstd, bzip2, xz, or plain.

Rule: the content decides, not the media type; what a wrong type hid is caught by the digest of the bytes that came out.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from oci.errors import DataLoss, InvalidArgument

Read = Callable[[int], bytes]
"""``read(n)``: up to n bytes, b"" only at the end."""

CHUNK = 256 << 10
_OUT = 1 << 20
_MAGICS = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"))


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def compression_of(head: bytes) -> str:
    """``gzip``, ``zstd``, ``bzip2``, ``xz`` or ``""`` from the first six bytes of a stream."""
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    return ""


def _factory(kind: str) -> Callable[[], _Decompressor]:
    if kind == "gzip":
        from isal import igzip_lib

        return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if kind == "bzip2":
        import bz2

        return bz2.BZ2Decompressor
    import lzma

    return lzma.LZMADecompressor


class _Members:
    """Concatenated compressed members as one stream; bounded output per call, so that a bomb cannot fill memory."""

    def __init__(self, read: Read, kind: str) -> None:
        self._read = read
        self._kind = kind
        self._new = _factory(kind)
        self._state = self._new()
        self._fed = False
        self._finished = False

    def read(self, size: int) -> bytes:
        while not self._finished:
            data = b""
            if self._state.eof:
                data = self._state.unused_data.lstrip(b"\0") or self._read(CHUNK).lstrip(b"\0")
                if not data:
                    self._finished = True
                    break
                if self._kind == "gzip" and not data.startswith(b"\x1f"):
                    self._finished = True  # bytes behind the last member are padding, as gzip(1) has it
                    break
                self._state = self._new()
            elif self._state.needs_input:
                data = self._read(CHUNK)
                if not data:
                    raise DataLoss(f"{self._kind} stream ends early: the archive is truncated")
            try:
                out = self._state.decompress(data, min(size, _OUT))
            except Exception as error:  # each library has its own exception for bad input
                raise DataLoss(f"corrupt {self._kind} stream: {error}") from error
            if out:
                return out
        return b""


class _Prefixed:
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, read: Read) -> None:
        self._head = head
        self._read = read

    def read(self, size: int = CHUNK) -> bytes:
        if self._head:
            out, self._head = self._head[:size], self._head[size:]
            return out
        return self._read(size)


class _Zstd:
    def __init__(self, source: _Prefixed) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)  # type: ignore[arg-type] # only read() is used

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._reader.read(min(size, _OUT)))
        except self._error as error:
            raise DataLoss(f"corrupt zstd stream: {error}") from error


def decompressed(read: Read) -> tuple[Read, str]:
    """A reader of the plain bytes behind ``read``, and the compression found.

    Raises (from the reader) ``DataLoss`` for corrupt or truncated input.
    """
    head = b""
    while len(head) < 6:
        more = read(6 - len(head))
        if not more:
            break
        head += more
    kind = compression_of(head)
    source = _Prefixed(head, read)
    if not kind:
        return source.read, kind
    if kind == "zstd":
        return _Zstd(source).read, kind
    return _Members(source.read, kind).read, kind


class Compressor(Protocol):
    """Incremental compression; ``flush`` ends the stream."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor(kind: str) -> Compressor:
    """A compressor for ``gzip``, ``zstd`` or ``""``; raises ``InvalidArgument`` for another kind."""
    if kind == "gzip":
        from isal import isal_zlib

        return isal_zlib.compressobj(level=2, wbits=31)
    if kind == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=3).compressobj()
    if kind:
        raise InvalidArgument(f"cannot write {kind} streams: use gzip, zstd or none")
    return _Plain()


class Stage:
    """Does ``work`` to one piece after the other in a thread of its own: what hashes and compresses shares the cores.

    An exception of ``work`` comes out of the next ``put``, or of ``finish``.
    """

    def __init__(self, work: Callable[[bytes], object]) -> None:
        self._work = work
        self._queue: queue.Queue[bytes] = queue.Queue(maxsize=8)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while data := self._queue.get():
            if self._failure is None:
                try:
                    self._work(data)
                except BaseException as failure:  # it belongs to whoever gives us work
                    self._failure = failure

    def put(self, data: bytes) -> None:
        """Hand on some bytes, not none."""
        if self._failure is not None:
            raise self._failure
        self._queue.put(data)

    def finish(self) -> None:
        """Return when everything is done."""
        self._queue.put(b"")
        self._thread.join()
        if self._failure is not None:
            raise self._failure


class HashingReader:
    """Passes bytes through and hashes them in a thread."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._hash = hashlib.sha256()
        self._stage = Stage(self._hash.update)
        self.size = 0

    def read(self, size: int) -> bytes:
        data = self._read(size)
        if data:
            self.size += len(data)
            self._stage.put(data)
        return data

    def finish(self) -> str:
        """Read the rest of the stream and give the digest of all of it."""
        while self.read(_OUT):
            pass
        self._stage.finish()
        return "sha256:" + self._hash.hexdigest()
