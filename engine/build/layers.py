"""Layers from members: a tar written once, hashed while it is written, equal bytes for equal input.

Rule: times are those of the files, never later than ``epoch``; nothing else of this machine or moment gets in.
"""

from __future__ import annotations

import hashlib
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from engine.build.copying import Member

PIECE = 1 << 20
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE, stat.S_IFIFO: tarfile.FIFOTYPE,
}  # fmt: skip


class Layer(NamedTuple):
    """What was written: ``diff_id`` (``sha256:…`` of the tar) and its size in bytes."""

    diff_id: str
    size: int


def write(members: Sequence[Member], out: Callable[[bytes], object], *, now: int, epoch: int | None = None) -> Layer:
    """Give the tar to ``out`` piece by piece. ``now`` (seconds) is the time of what has none. Blocking."""
    digest, size = hashlib.sha256(), 0
    for piece in _pieces(members, now, epoch):
        digest.update(piece)
        size += len(piece)
        out(piece)
    return Layer(f"sha256:{digest.hexdigest()}", size)


def _pieces(members: Sequence[Member], now: int, epoch: int | None) -> Iterator[bytes]:
    size = 0
    for member in members:
        header = _header(member, now, epoch)
        yield header
        size += len(header)
        if member.node.is_file:
            yield from _content(member)
            padding = -member.node.size % tarfile.BLOCKSIZE
            size += member.node.size + padding
            if padding:
                yield b"\0" * padding
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _content(member: Member) -> Iterator[bytes]:
    if member.tree is None:
        yield member.content
        return
    left = member.node.size
    with member.tree.open(member.source) as file:
        while left:
            piece = file.read(min(PIECE, left))
            if not piece:
                raise OSError(f"{member.source} became shorter while it was read")
            left -= len(piece)
            yield piece


def _header(member: Member, now: int, epoch: int | None) -> bytes:
    node = member.node
    info = tarfile.TarInfo(member.path + ("/" if node.is_dir else ""))
    info.type = _TYPES[stat.S_IFMT(node.mode)]
    info.mode = stat.S_IMODE(node.mode)
    info.uid, info.gid = node.uid, node.gid
    info.size = node.size if node.is_file else 0
    info.linkname = node.link
    info.devmajor, info.devminor = node.rdev >> 8 & 0xFFF, node.rdev & 0xFF | node.rdev >> 12 & 0xFFF00
    seconds = node.mtime // 10**9 if node.mtime else now
    info.mtime = min(seconds, epoch) if epoch is not None else seconds
    if member.tree is not None:
        xattrs = member.tree.xattrs(member.source)
        info.pax_headers = {
            f"SCHILY.xattr.{k}": v.decode("utf-8", "surrogateescape") for k, v in sorted(xattrs.items())
        }
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
