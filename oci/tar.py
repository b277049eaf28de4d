"""A streaming tar reader: ustar, pax, GNU long names, GNU and pax sparse files.

Rule: it parses and never touches the file system; every length is checked before memory is taken for it. Sources: POSIX
``pax`` interchange format, GNU tar manual ("Basic Tar Format", "Storing Sparse Files").
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from oci.errors import DataLoss, InvalidArgument

Read = Callable[[int], bytes | memoryview]
"""Up to so many bytes; nothing at the end."""

BLOCK = 512
MAX_META = 4 << 20
"""Bytes a pax header or a long name may have."""
_PIECE = 1 << 20
_ENCODING = sys.getfilesystemencoding()
_SLACK = 64 << 10

REGULAR = frozenset(b"0\x007")
HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO, SPARSE = (
    b"1"[0],
    b"2"[0],
    b"3"[0],
    b"4"[0],
    b"5"[0],
    b"6"[0],
    b"S"[0],
)
_XATTR = "SCHILY.xattr."


class Entry(NamedTuple):
    """One member. ``size`` is that of the data in the archive, ``real_size`` that of the file; ``mtime`` in ns.

    ``sparse`` is the map of a sparse file: (offset, length) pieces that the data fills; None for ordinary files.
    Names hold undecodable bytes as surrogates (``os.fsdecode``).
    """

    name: str
    kind: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: str
    major: int
    minor: int
    xattrs: dict[str, bytes]
    real_size: int
    sparse: list[tuple[int, int]] | None


def _number(field: bytes) -> int:
    """An octal or base-256 (GNU) header field."""
    try:
        return int(field.rstrip(b"\0 "), 8)  # nearly all of them
    except ValueError:
        return _odd_number(field)


def _odd_number(field: bytes) -> int:
    if field and field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    if field and field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.split(b"\0", 1)[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise DataLoss(f"corrupt tar header: {text!r} is not an octal number") from None


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(_ENCODING, "surrogateescape")


def _parse_pax(data: bytes) -> list[tuple[str, bytes]]:
    records = []
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + 20)
        if space < 0 or not data[at:space].isdigit():
            raise DataLoss("corrupt pax header: no record length")
        end = at + int(data[at:space])
        equals = data.find(b"=", space, end)
        if end > len(data) or equals < 0 or data[end - 1] != 0x0A:
            raise DataLoss("corrupt pax header: a record does not end where it says")
        records.append((os.fsdecode(data[space + 1 : equals]), data[equals + 1 : end - 1]))
        at = end
    return records


def _decimal(value: bytes, what: str) -> int:
    if not value.isdigit() or len(value) > 20:
        raise DataLoss(f"corrupt pax header: {what} is {value[:40]!r}")
    return int(value)


def _owner(number: int) -> int:
    """A user or group id; the last one means "unchanged" to chown(2) and belongs to nobody."""
    if not 0 <= number < 0xFFFFFFFF:
        raise DataLoss(f"corrupt tar header: {number} is no user or group id")
    return number


def _nanoseconds(value: bytes) -> int:
    whole, _, fraction = value.partition(b".")
    negative = whole.startswith(b"-")
    digits = whole[1:] if negative else whole
    nanos = _decimal(digits or b"0", "mtime") * 10**9 + _decimal((fraction + b"0" * 9)[:9], "mtime")
    return -nanos if negative else nanos


class TarReader:
    """Reads members one after another from ``read``. The data of a member must be read before the next ``next``.

    Data that was not read is skipped. Raises ``DataLoss`` for a corrupt archive.
    """

    def __init__(self, read: Read) -> None:
        self._source = read
        self._buffer = memoryview(b"")
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.next()) is not None:
            yield entry

    def _some(self, limit: int) -> memoryview:
        """Between 1 and ``limit`` bytes; empty at the end."""
        if not self._buffer:
            self._buffer = memoryview(self._source(_PIECE))
        out = self._buffer[:limit]
        self._buffer = self._buffer[limit:]
        return out

    def _exactly(self, size: int) -> bytes:
        first = self._some(size)
        if len(first) == size:
            return bytes(first)
        parts = [first]
        missing = size - len(first)
        while missing:
            part = self._some(missing)
            if not part:
                raise DataLoss("tar archive ends in the middle of a member: it is truncated")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _skip(self, size: int) -> None:
        while size:
            part = self._some(size)
            if not part:
                raise DataLoss("tar archive ends in the middle of a member: it is truncated")
            size -= len(part)

    def data(self) -> Iterator[memoryview]:
        """The bytes of the current member, in pieces of any size."""
        while self._left:
            part = self._some(self._left)
            if not part:
                raise DataLoss("tar archive ends in the middle of a file: it is truncated")
            self._left -= len(part)
            yield part

    def read_all(self, limit: int) -> bytes:
        """The whole data of the current member; raises ``InvalidArgument`` over ``limit`` bytes."""
        if self._left > limit:
            raise InvalidArgument(f"archive member of {self._left} bytes is over the limit of {limit}")
        return b"".join(self.data())

    def _meta(self, size: int) -> bytes:
        if size > MAX_META:
            raise InvalidArgument(f"tar extension header of {size} bytes is over the limit of {MAX_META}")
        data = self._exactly(size)
        self._skip(-size % BLOCK)
        return data

    def next(self) -> Entry | None:
        """The next member; None at the end of the archive."""
        self._skip(self._left + self._padding)
        self._left = self._padding = 0
        pax: list[tuple[str, bytes]] = []
        long_name: str | None = None
        long_link: str | None = None
        while True:
            header = self._header()
            if header is None:
                if pax or long_name is not None:
                    raise DataLoss("tar archive ends after an extension header: it is truncated")
                return None
            kind = header[156]
            size = _number(header[124:136])
            if size < 0:
                raise DataLoss("corrupt tar header: negative size")
            if kind == b"x"[0]:
                pax = _parse_pax(self._meta(size))
            elif kind == b"g"[0]:
                self._meta(size)  # global headers carry comments (git archive); none changes a member we keep
            elif kind == b"L"[0]:
                long_name = _text(self._meta(size))
            elif kind == b"K"[0]:
                long_link = _text(self._meta(size))
            else:
                return self._member(header, kind, size, dict(pax), pax, long_name, long_link)

    def _header(self) -> bytes | None:
        first = self._some(BLOCK)
        if not first:
            return None
        header = bytes(first) if len(first) == BLOCK else bytes(first) + self._exactly(BLOCK - len(first))
        if not header.strip(b"\0"):
            return None
        expected = _number(header[148:156])
        total = sum(header) - sum(header[148:156]) + 256
        if total != expected:
            signed = total - 256 * sum(1 for i, byte in enumerate(header) if byte & 0x80 and not 148 <= i < 156)
            if signed != expected:
                raise DataLoss("corrupt tar header: the checksum does not match (is this a tar archive?)")
        return header

    def _member(
        self,
        header: bytes,
        kind: int,
        size: int,
        pax: dict[str, bytes],
        records: list[tuple[str, bytes]],
        long_name: str | None,
        long_link: str | None,
    ) -> Entry:
        name = _text(header[:100])
        if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
            name = f"{prefix}/{name}"
        if "size" in pax:
            size = _decimal(pax["size"], "size")
        name = os.fsdecode(pax["path"]) if "path" in pax else long_name if long_name is not None else name
        link = os.fsdecode(pax["linkpath"]) if "linkpath" in pax else long_link
        if "\0" in name or (link and "\0" in link):
            raise DataLoss("corrupt pax header: a name holds a zero byte")
        has_data = kind in REGULAR or kind == SPARSE or kind not in b"123456"
        self._left = size if has_data else 0
        self._padding = -self._left % BLOCK
        real_size, sparse = self._sparse(header, kind, size, pax, records)
        if "GNU.sparse.name" in pax:
            name = os.fsdecode(pax["GNU.sparse.name"])
        if kind in b"\x007" and name.endswith("/"):
            kind = DIRECTORY
        return Entry(
            name=name,
            kind=b"0"[0] if kind == SPARSE or kind in REGULAR else kind,
            mode=_number(header[100:108]) & 0o7777,
            uid=_owner(_decimal(pax["uid"], "uid") if "uid" in pax else _number(header[108:116])),
            gid=_owner(_decimal(pax["gid"], "gid") if "gid" in pax else _number(header[116:124])),
            size=self._left,
            mtime=_nanoseconds(pax["mtime"]) if "mtime" in pax else _number(header[136:148]) * 10**9,
            link=_text(header[157:257]) if link is None else link,
            major=_number(header[329:337]) if kind in (CHAR, BLOCKDEV) else 0,
            minor=_number(header[337:345]) if kind in (CHAR, BLOCKDEV) else 0,
            xattrs={k[len(_XATTR) :]: v for k, v in pax.items() if k.startswith(_XATTR)} if pax else {},
            real_size=real_size,
            sparse=sparse,
        )

    def _sparse(
        self, header: bytes, kind: int, size: int, pax: dict[str, bytes], records: list[tuple[str, bytes]]
    ) -> tuple[int, list[tuple[int, int]] | None]:
        """(real size, map) of a member; advances past maps that precede the data."""
        if kind == SPARSE:
            pieces = _old_gnu_map(header[386:482], 4)
            extended = header[482]
            while extended:
                block = self._exactly(BLOCK)
                pieces += _old_gnu_map(block, 21)
                extended = block[504]
                _check_pieces(pieces)
            return _checked(pieces, _number(header[483:495]), size)
        if not pax or not any(key.startswith("GNU.sparse.") for key in pax):
            return size, None
        real = _decimal(pax.get("GNU.sparse.realsize") or pax.get("GNU.sparse.size") or b"%d" % size, "sparse size")
        if pax.get("GNU.sparse.major") == b"1":
            return _checked(self._pax_map_in_data(), real, self._left)
        if "GNU.sparse.map" in pax:
            numbers = [_decimal(n, "sparse map") for n in pax["GNU.sparse.map"].split(b",")]
        else:
            keys = ("GNU.sparse.offset", "GNU.sparse.numbytes")
            numbers = [_decimal(value, key) for key, value in records if key in keys]
        return _checked(list(zip(numbers[::2], numbers[1::2], strict=False)), real, size)

    def _pax_map_in_data(self) -> list[tuple[int, int]]:
        """The map of format 1.0: decimal lines before the data, padded to a block."""
        buffer = b""
        lines: list[bytes] = []
        wanted = 1
        while len(lines) < wanted:
            if self._left < BLOCK:
                raise DataLoss("corrupt sparse map: it is longer than the member")
            buffer += self._exactly(BLOCK)
            self._left -= BLOCK
            *whole, buffer = buffer.split(b"\n")
            lines += whole
            if lines:
                wanted = 1 + 2 * _decimal(lines[0], "sparse map length")
            if len(lines) > MAX_META // BLOCK * 16 or wanted > MAX_META:
                raise InvalidArgument("sparse map of an archive member is too long")
        numbers = [_decimal(line, "sparse map") for line in lines[1:wanted]]
        return list(zip(numbers[::2], numbers[1::2], strict=True))


def _old_gnu_map(data: bytes, count: int) -> list[tuple[int, int]]:
    pieces = [(_number(data[24 * i : 24 * i + 12]), _number(data[24 * i + 12 : 24 * i + 24])) for i in range(count)]
    return [(offset, length) for offset, length in pieces if offset or length]


def _check_pieces(pieces: list[tuple[int, int]]) -> None:
    if len(pieces) > MAX_META // 16:
        raise InvalidArgument("sparse map of an archive member is too long")


def _checked(pieces: list[tuple[int, int]], real_size: int, stored: int) -> tuple[int, list[tuple[int, int]]]:
    """The map, once it is known to be ordered, inside the file, and as long as the data."""
    end = 0
    for offset, length in pieces:
        if offset < end or length < 0 or offset + length > real_size:
            raise DataLoss("corrupt sparse map: pieces overlap or lie outside of the file")
        end = offset + length
    if sum(length for _, length in pieces) != stored:
        raise DataLoss("corrupt sparse map: it does not add up to the data")
    return real_size, pieces
