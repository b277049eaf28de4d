"""File modes as Go writes them, which fsutil sends (Go ``io/fs.FileMode``).

Rule: pure; kinds that Linux does not have are refused.
"""

from __future__ import annotations

import os
import stat

from engine.build.trees import Node
from oci.errors import InvalidArgument
from protos.buildkit.fsutil_pb2 import Stat

_DIRECTORY, _LINK, _DEVICE, _PIPE, _SOCKET = 1 << 31, 1 << 27, 1 << 26, 1 << 25, 1 << 24
_SETUID, _SETGID, _CHARACTER, _STICKY = 1 << 23, 1 << 22, 1 << 21, 1 << 20
_PERMISSIONS = 0o777
_KINDS = {
    0: stat.S_IFREG, _DIRECTORY: stat.S_IFDIR, _LINK: stat.S_IFLNK, _DEVICE: stat.S_IFBLK,
    _DEVICE | _CHARACTER: stat.S_IFCHR, _PIPE: stat.S_IFIFO, _SOCKET: stat.S_IFSOCK,
}  # fmt: skip
_TYPES = {kind: bits for bits, kind in _KINDS.items()}
_ALL_TYPES = _DIRECTORY | _LINK | _DEVICE | _PIPE | _SOCKET | _CHARACTER
_SPECIAL = ((_SETUID, stat.S_ISUID), (_SETGID, stat.S_ISGID), (_STICKY, stat.S_ISVTX))


def from_go(mode: int) -> int:
    """``st_mode`` of a Go mode. Raises ``InvalidArgument``."""
    kind = _KINDS.get(mode & _ALL_TYPES)
    if kind is None:
        raise InvalidArgument(f"a file of an unknown kind: mode {mode:#x}")
    return kind | mode & _PERMISSIONS | sum(ours for theirs, ours in _SPECIAL if mode & theirs)


def to_go(mode: int) -> int:
    """A Go mode of ``st_mode``."""
    special = sum(theirs for theirs, ours in _SPECIAL if mode & ours)
    return _TYPES[stat.S_IFMT(mode)] | mode & _PERMISSIONS | special


def node_of(told: Stat) -> Node:
    """A file as the client told of it."""
    mode = from_go(told.mode)
    device = os.makedev(told.devmajor, told.devminor) if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0
    size = told.size if stat.S_ISREG(mode) else 0
    link = told.linkname if stat.S_ISLNK(mode) else ""
    return Node(mode, size, told.modTime, told.uid, told.gid, link, device)


def stat_of(path: str, node: Node, xattrs: dict[str, bytes]) -> Stat:
    """A file of ours as a client is told of it."""
    told = Stat(
        path=path, mode=to_go(node.mode), uid=node.uid, gid=node.gid, size=node.size, modTime=node.mtime,
        linkname=node.link, devmajor=os.major(node.rdev), devminor=os.minor(node.rdev),
    )  # fmt: skip
    for name, value in xattrs.items():
        told.xattrs[name] = value
    return told
