"""Archives to layers: any compression in, gzip out, both digests on the way.

Rule: bytes are worked on in threads, piece by piece; nothing is ever whole in memory.
"""

from __future__ import annotations

import asyncio
import bz2
import hashlib
import lzma
from collections.abc import AsyncIterator
from typing import Protocol, cast

import zstandard
from isal import isal_zlib

from oci.errors import InvalidArgument

_HEAD = 8
_GZIP_LEVEL = 1


class _Decoder(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


class _Member(_Decoder, Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Packer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def decompress(self, data: bytes, /) -> bytes:
        return data


class _Members:
    """Concatenated members (gzip, bzip2, xz) as one stream."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._current = self._new()

    def _new(self) -> _Member:
        if self._kind == "gzip":
            decoder: _Member = isal_zlib.decompressobj(wbits=31)
            return decoder
        return bz2.BZ2Decompressor() if self._kind == "bzip2" else lzma.LZMADecompressor()

    def decompress(self, data: bytes, /) -> bytes:
        out = []
        while data:
            if self._current.eof:
                data = data.lstrip(b"\0")
                if not data:
                    break
                self._current = self._new()
            out.append(self._current.decompress(data))
            data = self._current.unused_data if self._current.eof else b""
        return b"".join(out)


def decoder_for(head: bytes) -> _Decoder:
    """What undoes the compression that ``head`` shows."""
    if head.startswith(b"\x1f\x8b"):
        return _Members("gzip")
    if head.startswith(b"BZh"):
        return _Members("bzip2")
    if head.startswith(b"\xfd7zXZ\0"):
        return _Members("xz")
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
    return _Plain()


def _damage() -> tuple[type[Exception], ...]:
    """What decoders raise for bytes that they cannot make sense of."""
    return OSError, EOFError, lzma.LZMAError, zstandard.ZstdError, cast("type[Exception]", isal_zlib.error)


class LayerStream:
    """One layer on its way into the store. After ``pieces`` ended, ``diff_id`` is the plain tar's digest."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self.plain_size = 0

    @property
    def diff_id(self) -> str:
        return "sha256:" + self._hash.hexdigest()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The layer as gzip with no time and no name in its header, so that equal tars give equal blobs."""
        head = b""
        decoder: _Decoder | None = None
        packer: _Packer = isal_zlib.compressobj(_GZIP_LEVEL, wbits=31)
        async for data in self._source:
            head += data
            if decoder is None and len(head) >= _HEAD:
                decoder = decoder_for(head)
            if decoder is not None:
                packed, head = await asyncio.to_thread(self._step, decoder, packer, head), b""
                if packed:
                    yield packed
        if decoder is None:
            yield await asyncio.to_thread(self._step, decoder_for(head), packer, head)
        yield packer.flush()

    def _step(self, decoder: _Decoder, packer: _Packer, data: bytes) -> bytes:
        try:
            plain = decoder.decompress(data)
        except _damage() as error:
            raise InvalidArgument(f"the archive's compression is damaged: {error}") from None
        self._hash.update(plain)
        self.plain_size += len(plain)
        return packer.compress(plain)
