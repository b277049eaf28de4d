"""DNS messages as far as a resolver for containers needs them (RFC 1035, EDNS: RFC 6891).

Rule: bytes in, values out, and back; no socket, no clock. Whatever the bytes, a parser here returns or raises
``DnsFormatError``. Questions and answers that are passed on stay bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

A, PTR, AAAA, OPT, ANY = 1, 12, 28, 41, 255
IN = 1

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5

FLAG_RESPONSE, FLAG_TRUNCATED, FLAG_RECURSION_DESIRED, FLAG_RECURSION_AVAILABLE = 0x8000, 0x0200, 0x0100, 0x0080
FLAG_CHECKING_DISABLED = 0x0010
OPCODE = 0x7800

CLASSIC_SIZE = 512
"""What a client takes by UDP that says nothing about it."""
LARGEST_SIZE = 4096
"""What is sent by UDP at most, and announced in EDNS."""

TTL = 5
"""Seconds an answer about a container may be kept: its address may change with a restart."""

_HEADER = struct.Struct(">HHHHHH")
_FIXED = struct.Struct(">HHIH")
_MAX_NAME = 255


class DnsFormatError(ValueError):
    """The bytes are not a DNS message that can be answered."""


class Query(NamedTuple):
    """A question.

    ``name`` has no final dot and keeps its case; ``question`` are its bytes; ``size`` is 0 without EDNS.
    """

    id: int
    flags: int
    name: str
    kind: int
    network: int
    question: bytes
    size: int

    @property
    def limit(self) -> int:
        """Bytes of an answer that the client takes by UDP."""
        return min(max(self.size, CLASSIC_SIZE), LARGEST_SIZE)


Answer = tuple[int, bytes]
"""(type, data) of one resource record about the name that was asked for."""


def address_answer(address: IPv4Address | IPv6Address) -> Answer:
    """An A or AAAA record."""
    return (A if address.version == 4 else AAAA), address.packed


def name_answer(name: str) -> Answer:
    """A PTR record."""
    return PTR, encode_name(name)


def encode_name(name: str) -> bytes:
    """A name as labels; raises ``DnsFormatError`` for one that DNS cannot hold."""
    out = bytearray()
    for label in name.rstrip(".").split(".") if name.rstrip(".") else ():
        data = label.encode("latin-1", errors="replace")
        if not 0 < len(data) < 64:
            raise DnsFormatError(f"not a DNS name: {name!r}")
        out += bytes([len(data)]) + data
    if len(out) >= _MAX_NAME:
        raise DnsFormatError(f"too long for a DNS name: {name!r}")
    return bytes(out) + b"\0"


def _decode_plain_name(packet: bytes, at: int) -> tuple[str, int]:
    """(name, offset behind it) of a name without compression, as all names of questions are."""
    labels: list[str] = []
    start = at
    while True:
        if at >= len(packet):
            raise DnsFormatError("a name is cut off")
        size = packet[at]
        if size == 0:
            return ".".join(labels), at + 1
        if size > 63:
            raise DnsFormatError("a compressed name in a question")
        label = packet[at + 1 : at + 1 + size]
        at += 1 + size
        if len(label) < size or at - start > _MAX_NAME:
            raise DnsFormatError("a name is cut off or too long")
        labels.append(label.decode("latin-1"))


def _skip_name(packet: bytes, at: int) -> int:
    while at < len(packet):
        size = packet[at]
        if size == 0:
            return at + 1
        if size >= 0xC0:
            return at + 2
        if size > 63:
            break
        at += 1 + size
    raise DnsFormatError("a name is cut off")


def parse_query(packet: bytes) -> Query:
    """One question of class and type; raises ``DnsFormatError`` for anything else."""
    if len(packet) < _HEADER.size:
        raise DnsFormatError("shorter than a header")
    identifier, flags, questions, *counts = _HEADER.unpack_from(packet)
    if flags & FLAG_RESPONSE:
        raise DnsFormatError("an answer, not a question")
    if questions != 1:
        raise DnsFormatError(f"{questions} questions in one message")
    name, at = _decode_plain_name(packet, _HEADER.size)
    if at + 4 > len(packet):
        raise DnsFormatError("a question is cut off")
    kind, network = struct.unpack_from(">HH", packet, at)
    question = packet[_HEADER.size : at + 4]
    return Query(identifier, flags, name, kind, network, question, _edns_size(packet, at + 4, sum(counts)))


def _edns_size(packet: bytes, at: int, records: int) -> int:
    """The payload size that the OPT record announces; 0 without one."""
    for _ in range(records):
        at = _skip_name(packet, at)
        if at + _FIXED.size > len(packet):
            raise DnsFormatError("a record is cut off")
        kind, size, _, length = (int(number) for number in _FIXED.unpack_from(packet, at))
        if kind == OPT:
            return max(size, CLASSIC_SIZE)
        at += _FIXED.size + length
    return 0


def response(query: Query, code: int, answers: Iterable[Answer] = (), *, limit: int = 0xFFFF) -> bytes:
    """An answer of ours of at most ``limit`` bytes; what does not fit is left out and the truncation flag says so."""
    records = [b"\xc0\x0c" + _FIXED.pack(kind, IN, TTL, len(data)) + data for kind, data in answers]
    extra = b"\0" + _FIXED.pack(OPT, LARGEST_SIZE, 0, 0) if query.size else b""
    room = limit - _HEADER.size - len(query.question) - len(extra)
    fitting: list[bytes] = []
    for record in records:
        if len(record) > room:
            break
        room -= len(record)
        fitting.append(record)
    flags = FLAG_RESPONSE | FLAG_RECURSION_AVAILABLE | code
    flags |= query.flags & (OPCODE | FLAG_RECURSION_DESIRED | FLAG_CHECKING_DISABLED)
    if len(fitting) < len(records):
        flags |= FLAG_TRUNCATED
    head = _HEADER.pack(query.id, flags, 1, len(fitting), 0, 1 if extra else 0)
    return head + query.question + b"".join(fitting) + extra


def error_response(packet: bytes, code: int) -> bytes:
    """An answer without a question, to a message that could not be read; b"" where there is nobody to answer."""
    if len(packet) < _HEADER.size or packet[2] & 0x80:
        return b""
    identifier, flags = struct.unpack_from(">HH", packet)
    return _HEADER.pack(identifier, FLAG_RESPONSE | (flags & (OPCODE | FLAG_RECURSION_DESIRED)) | code, 0, 0, 0, 0)


def with_id(packet: bytes, identifier: int) -> bytes:
    """``packet`` under another id."""
    return struct.pack(">H", identifier) + packet[2:]


def answers(reply: bytes, identifier: int, question: bytes) -> bool:
    """Whether ``reply`` is the answer to the message with this id and question (case does not count)."""
    if len(reply) < _HEADER.size:
        return False
    got, flags, questions = struct.unpack_from(">HHH", reply)
    if got != identifier or not flags & FLAG_RESPONSE:
        return False
    # A server that cannot read the question may leave it out.
    if questions == 0:
        return code_of(reply) != NOERROR
    return reply[_HEADER.size : _HEADER.size + len(question)].lower() == question.lower()


def code_of(reply: bytes) -> int:
    """The response code of an answer."""
    return reply[3] & 0x0F


def reverse_address(name: str) -> IPv4Address | IPv6Address | None:
    """The address that ``4.3.2.1.in-addr.arpa`` or its IPv6 counterpart is about; None for any other name."""
    labels = name.lower().split(".")
    try:
        if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
            return IPv4Address(".".join(labels[3::-1]))
        if labels[-2:] == ["ip6", "arpa"] and len(labels) == 34 and all(len(x) == 1 for x in labels[:32]):
            return IPv6Address(int("".join(labels[31::-1]), 16))
    except ValueError:
        return None
    return None


def reverse_name(address: IPv4Address | IPv6Address) -> str:
    """The name under which an address is asked for."""
    return address.reverse_pointer
