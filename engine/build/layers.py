"""Layers from members: a tar written once, hashed while it is written, equal bytes for equal input.

Rule: times are those of the files, never later than ``epoch``; nothing else of this machine or moment gets in.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterator, Sequence

from engine.build.copying import Member
from oci import tarhead

PIECE = 1 << 20
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE, stat.S_IFIFO: tarfile.FIFOTYPE,
}  # fmt: skip


def archive(members: Sequence[Member], *, now: int, epoch: int | None = None) -> Iterator[bytes]:
    """The tar of ``members`` in pieces of about ``PIECE`` bytes. ``now`` (seconds) is the time of what has none.

    Blocking.
    """
    waiting: list[bytes] = []
    size = 0
    for piece in _pieces(members, now, epoch):
        waiting.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _pieces(members: Sequence[Member], now: int, epoch: int | None) -> Iterator[bytes]:
    for member in members:
        yield _header(member, now, epoch)
        if member.node.is_file:
            yield from _content(member)
            yield tarhead.padding(member.node.size)
    yield tarhead.END


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
    seconds = node.mtime // 10**9 if node.mtime else now
    entry = tarhead.Member(
        member.path,
        _TYPES[stat.S_IFMT(node.mode)],
        node.mode,
        node.uid,
        node.gid,
        node.size if node.is_file else 0,
        (min(seconds, epoch) if epoch is not None else seconds) * 10**9,
        node.link,
        (node.rdev >> 8 & 0xFFF, node.rdev & 0xFF | node.rdev >> 12 & 0xFFF00),
    )
    xattrs = member.tree.xattrs(member.source) if member.tree is not None else {}
    records = {f"SCHILY.xattr.{k}": v.decode("utf-8", "surrogateescape") for k, v in sorted(xattrs.items())}
    return tarhead.header(entry, records)
