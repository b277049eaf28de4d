"""Archives among a build's sources: which files are tars (packed or not), and their contents as a tree.

Rule: an archive is read like a build context: by index, never unpacked by name.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO

from engine.build.context import Context
from engine.build.trees import Tree
from engine.images.layers import decoder_for
from oci import tar
from oci.errors import DataLoss, GantryError

HEAD = 64 << 10
PIECE = 256 << 10


class Unpacked:
    """A file as the plain bytes it holds, whatever packed it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        head = file.read(HEAD)
        self._decoder = decoder_for(head)
        self._waiting = memoryview(self._decoded(head))

    def _decoded(self, data: bytes) -> bytes:
        try:
            return self._decoder.decompress(data)
        except Exception as error:  # each codec has an error of its own
            raise DataLoss(f"damaged archive: {error}") from None

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; ``b""`` at the end."""
        while not self._waiting:
            data = self._file.read(PIECE)
            if not data:
                return b""
            self._waiting = memoryview(self._decoded(data))
        head, self._waiting = bytes(self._waiting[:size]), self._waiting[size:]
        return head


def is_archive(tree: Tree, path: str) -> bool:
    """Whether the file is a tar, plain or packed: its first member says so."""
    try:
        with tree.open(path) as file:
            source = Unpacked(file)
            first = source.read(tar.BLOCK)
            while len(first) < tar.BLOCK and (more := source.read(tar.BLOCK - len(first))):
                first += more
    except GantryError:
        return False
    if len(first) < tar.BLOCK or not first.strip(b"\0"):
        return False
    try:
        return tar.TarReader(io.BytesIO(first + b"\0" * 2 * tar.BLOCK).read).next() is not None
    except GantryError:
        # A pax header announces more than one block: what matters is that its checksum was right.
        return first[257:262] == b"ustar"


@contextlib.contextmanager
def unpacked(tree: Tree, path: str, spool: str) -> Iterator[Context]:
    """The archive's contents; ``spool`` names a file to keep them in."""
    context = Context(spool)
    try:
        with tree.open(path) as file:
            context.receive(Unpacked(file).read)
        yield context
    finally:
        context.close()
