"""Headers of tar members, byte for byte those of the standard library's ``tarfile`` (pax), at a tenth of its time.

Rule: what is usual is put together here; whatever needs a record of its own (long or non-ASCII names, large numbers,
attributes, devices) is ``tarfile``'s, so that there is one truth about the format. Source: POSIX ``pax``, "ustar
Interchange Format".
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
"""What an archive ends with."""

_NAME = 100
_IDS, _SIZES = 8**7, 8**11
_TAIL = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)[257:]
"""Magic, no names of owners, no device numbers, no prefix: the same for all that is no device."""
_USUAL = sum(_TAIL) + 8 * 0x20
"""What every header's checksum holds: the tail, and the checksum itself as spaces."""
_PLAIN = frozenset((tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE))


class Member(NamedTuple):
    """One member: ``kind`` is ``tarfile``'s type, ``mtime`` in ns, ``device`` the major and the minor number."""

    name: str
    kind: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    link: str = ""
    device: tuple[int, int] = (0, 0)


def header(member: Member, records: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Header blocks of one member; its data and ``padding`` follow.

    ``records``: pax records besides the time's, undecodable bytes as surrogates.
    """
    name, kind, mode, uid, gid, size, mtime, link, _ = member
    if kind == tarfile.DIRTYPE and not name.endswith("/"):
        name += "/"
    usual = kind in _PLAIN and not records and name.isascii() and link.isascii()
    short = len(name) <= _NAME and len(link) <= _NAME
    seconds, nanoseconds = divmod(mtime, 10**9)
    fits = 0 <= uid < _IDS and 0 <= gid < _IDS and 0 <= size < _SIZES and 0 <= seconds < _SIZES
    if not (usual and short and fits):
        return unusual(member, records)
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode & 0o7777, uid, gid, size, seconds)
    named, linked = name.encode(), link.encode()
    total = _USUAL + sum(named) + sum(numbers) + kind[0] + sum(linked)
    block = b"%b%b%06o\0 %b%b%b" % (named.ljust(_NAME, b"\0"), numbers, total, kind, linked.ljust(_NAME, b"\0"), _TAIL)
    return _time_record(_time(mtime)) + block if nanoseconds else block


def unusual(member: Member, records: Mapping[str, str]) -> bytes:
    """The same by ``tarfile``, whatever it is."""
    info = tarfile.TarInfo(member.name)
    info.type, info.mode, info.size, info.linkname = member.kind, member.mode, member.size, member.link
    info.uid, info.gid = member.uid, member.gid
    info.devmajor, info.devminor = member.device
    info.mtime, nanoseconds = divmod(member.mtime, 10**9)
    info.pax_headers = {**({"mtime": _time(member.mtime)} if nanoseconds else {}), **records}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _time(mtime: int) -> str:
    seconds, nanoseconds = divmod(mtime, 10**9)
    return f"{seconds}.{nanoseconds:09d}"


def padding(size: int) -> bytes:
    """What follows ``size`` bytes of data up to the next header."""
    return bytes(-size % BLOCK)


def _time_record(text: str) -> bytes:
    record = b" mtime=%b\n" % text.encode()
    length = len(record) + 2  # two digits: a time has at most 21
    return _record_header(len(text)) + (b"%d%b" % (length, record)).ljust(BLOCK, b"\0")


@functools.cache
def _record_header(length: int) -> bytes:
    """The header of a record for a time of ``length`` characters."""
    info = tarfile.TarInfo()
    info.pax_headers = {"mtime": "1" * length}
    return info.tobuf(tarfile.PAX_FORMAT)[:BLOCK]
