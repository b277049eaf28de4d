"""nftables objects and expressions as netlink messages (linux/netfilter/nf_tables.h).

Rule: functions build bytes and change nothing; the names are those of nft(8). Registers are the 32-bit ones, numbered
from ``REG`` (8) up, so that a concatenated key is loaded field by field.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from engine.network.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    attribute,
    attributes,
    be32,
    message,
    nested,
    text,
)

SUBSYSTEM = 10
NEW_TABLE, GET_TABLE, DELETE_TABLE, NEW_CHAIN, GET_CHAIN, DELETE_CHAIN = 0, 1, 2, 3, 4, 5
NEW_RULE, GET_RULE, DELETE_RULE = 6, 7, 8
NEW_SET, GET_SET, DELETE_SET, NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT = 9, 10, 11, 12, 13, 14

FAMILY_INET = 1
FAMILY_IPV4 = 2
FAMILY_IPV6 = 10

REG = 8
"""``NFT_REG32_00``: the first of sixteen four-byte registers."""
_VERDICT_REGISTER = 0

DROP, ACCEPT, JUMP, RETURN = 0, 1, -3, -5

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = 0, 1, 2, 3, 4
RAW, DSTNAT, FILTER, SRCNAT = -300, -100, 0, 100

META_IIFNAME, META_OIFNAME, META_NFPROTO, META_L4PROTO = 6, 7, 15, 16
CT_STATE, CT_STATUS = 0, 2
STATE_ESTABLISHED, STATE_RELATED, STATE_NEW = 2, 4, 8
STATUS_DNAT = 1 << 5
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
_FIB_ADDRTYPE, _FIB_DADDR = 3, 2
RTN_LOCAL = 2

TYPE_NFPROTO, TYPE_IPV4, TYPE_IPV6, TYPE_PROTO, TYPE_SERVICE, TYPE_IFNAME = 2, 7, 8, 12, 13, 41
"""nft(8)'s own numbers of key types: they only tell ``nft list`` how to print."""
_HOST_ORDER = b"\0\4" + struct.pack("=I", 1)
"""User data of a set: keys are in host byte order; without it ``nft list`` prints interface names as nothing."""
SET_MAP = 8
_HANDLE, _USER_DATA = 3, 7
IFNAME_SIZE = 16
ELEMENTS_PER_MESSAGE = 500
"""An attribute holds less than 64 KiB; an element of ours takes 40 to 60 bytes."""


def _message(kind: int, flags: int, *parts: bytes) -> Message:
    return message(SUBSYSTEM << 8 | kind, flags, struct.pack(">BBH", FAMILY_INET, 0, 0) + b"".join(parts))


def batch_begin() -> Message:
    """Opens a transaction."""
    return message(0x10, 0, struct.pack(">BBH", 0, 0, SUBSYSTEM))


def batch_end() -> Message:
    """Commits a transaction."""
    return message(0x11, 0, struct.pack(">BBH", 0, 0, SUBSYSTEM))


def new_table(name: str) -> Message:
    """``add table inet NAME``."""
    return _message(NEW_TABLE, NLM_F_CREATE, text(1, name), be32(2, 0))


def delete_table(name: str) -> Message:
    """``delete table inet NAME`` with all that is in it."""
    return _message(DELETE_TABLE, 0, text(1, name))


def get_table(name: str) -> Message:
    """Asks for one table."""
    return _message(GET_TABLE, 0, text(1, name))


def new_chain(table: str, name: str, kind: str, hook: int, priority: int) -> Message:
    """``add chain`` with a hook and policy accept; ``kind`` is ``filter`` or ``nat``."""
    place = nested(4, be32(1, hook), attribute(2, struct.pack(">i", priority)))
    return _message(NEW_CHAIN, NLM_F_CREATE, text(1, table), text(3, name), place, be32(5, ACCEPT), text(7, kind))


def new_plain_chain(table: str, name: str) -> Message:
    """``add chain`` without a hook: reached by ``jump`` only."""
    return _message(NEW_CHAIN, NLM_F_CREATE, text(1, table), text(3, name))


def delete_chain(table: str, name: str) -> Message:
    """``delete chain``, which must be empty and unused."""
    return _message(DELETE_CHAIN, 0, text(1, table), text(3, name))


def flush_chain(table: str, name: str) -> Message:
    """``flush chain``: its rules go, the chain stays."""
    return _message(DELETE_RULE, 0, text(1, table), text(2, name))


def delete_set(table: str, name: str) -> Message:
    """``delete set`` or ``delete map``, which must be unused."""
    return _message(DELETE_SET, 0, text(1, table), text(2, name))


def flush_set(table: str, name: str) -> Message:
    """``flush set`` or ``flush map``: every element goes."""
    return _message(DELETE_ELEMENT, 0, text(1, table), text(2, name))


def new_set(table: str, name: str, key_types: Sequence[int], key_size: int, identifier: int) -> Message:
    """``add set`` of a (concatenated) key of ``key_size`` bytes."""
    head = (text(1, table), text(2, name), be32(3, 0), be32(4, _concatenated(key_types)), be32(5, key_size))
    return _message(NEW_SET, NLM_F_CREATE, *head, be32(10, identifier), attribute(13, _HOST_ORDER))


def new_map(
    table: str, name: str, key: tuple[Sequence[int], int], data: tuple[Sequence[int], int], identifier: int
) -> Message:
    """``add map``; ``key`` and ``data`` are (types, size in bytes)."""
    head = (text(1, table), text(2, name), be32(3, SET_MAP), be32(4, _concatenated(key[0])), be32(5, key[1]))
    return _message(
        NEW_SET, NLM_F_CREATE, *head, be32(6, _concatenated(data[0])), be32(7, data[1]), be32(10, identifier)
    )


def _concatenated(types: Sequence[int]) -> int:
    number = 0
    for kind in types:
        number = number << 6 | kind
    return number


def _value(kind: int, data: bytes) -> bytes:
    return nested(kind, attribute(1, data))


def elements(kind: int, table: str, name: str, pairs: Iterable[tuple[bytes, bytes | None]]) -> list[Message]:
    """``add``/``delete element`` messages (``kind``) for (key, data or None) pairs."""
    items = [nested(1, _value(1, key), b"" if data is None else _value(2, data)) for key, data in pairs]
    flags = NLM_F_CREATE if kind == NEW_ELEMENT else 0
    return [
        _message(kind, flags, text(1, table), text(2, name), nested(3, *items[at : at + ELEMENTS_PER_MESSAGE]))
        for at in range(0, len(items), ELEMENTS_PER_MESSAGE)
    ]


def new_rule(table: str, chain: str, *expressions: bytes, comment: str = "") -> Message:
    """``add rule``: appended behind the chain's others; ``comment`` is shown by ``nft list``."""
    body = (text(1, table), text(2, chain), nested(4, *expressions))
    note = (attribute(_USER_DATA, comment_data(comment)),) if comment else ()
    return _message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, *body, *note)


def delete_rule(table: str, chain: str, handle: bytes) -> Message:
    """``delete rule``: the one with this handle, as the kernel gave it."""
    return _message(DELETE_RULE, 0, text(1, table), text(2, chain), attribute(_HANDLE, handle))


def comment_data(comment: str) -> bytes:
    """A comment in nft(8)'s layout of user data: type 0, length, text with a NUL."""
    data = comment.encode() + b"\0"
    return bytes((0, len(data))) + data


def handles_with(comment: str, rules: Iterable[bytes]) -> list[bytes]:
    """Handles of those of the dumped ``rules`` that carry ``comment``."""
    wanted, out = comment_data(comment), []
    for body in rules:
        if wanted in body:
            found = dict(attributes(body[4:]))
            if found.get(_USER_DATA) == wanted:
                out.append(found[_HANDLE])
    return out


def query_elements(table: str, name: str) -> bytes:
    """Body of a dump of the elements of one set."""
    return struct.pack(">BBH", FAMILY_INET, 0, 0) + text(1, table) + text(2, name)


def query_all() -> bytes:
    """Body of a dump over all tables of every family."""
    return struct.pack(">BBH", 0, 0, 0)


def query_rules(table: str, chain: str) -> bytes:
    """Body of a dump of the rules of one chain."""
    return struct.pack(">BBH", FAMILY_INET, 0, 0) + text(1, table) + text(2, chain)


def query_table(family: int, table: str) -> bytes:
    """Body of a dump of the rules of a whole table, which may be somebody else's."""
    return struct.pack(">BBH", family, 0, 0) + text(1, table)


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *parts))


def meta(key: int, register: int = REG) -> bytes:
    """Load packet metadata into a register."""
    return _expression("meta", be32(2, key), be32(1, register))


def payload(base: int, offset: int, size: int, register: int = REG) -> bytes:
    """Load header bytes into a register."""
    return _expression("payload", be32(1, register), be32(2, base), be32(3, offset), be32(4, size))


def equal(data: bytes, register: int = REG, *, inverted: bool = False) -> bytes:
    """Go on only if the register is (not) ``data``."""
    return _expression("cmp", be32(1, register), be32(2, 1 if inverted else 0), _value(3, data))


def mask(bits: bytes, register: int = REG) -> bytes:
    """And a register with ``bits``."""
    operands = (be32(1, register), be32(2, register), be32(3, len(bits)))
    return _expression("bitwise", *operands, _value(4, bits), _value(5, bytes(len(bits))))


def immediate(data: bytes, register: int = REG) -> bytes:
    """Load a constant into a register."""
    return _expression("immediate", be32(1, register), _value(2, data))


def lookup(name: str, identifier: int, *, inverted: bool = False, into: int | None = None, at: int = REG) -> bytes:
    """Go on only if the key at register ``at`` is (not) in a set; a map's data goes to register ``into``."""
    parts = [text(1, name), be32(2, at), be32(4, identifier)]
    if into is not None:
        parts.append(be32(3, into))
    if inverted:
        parts.append(be32(5, 1))
    return _expression("lookup", *parts)


def conntrack(key: int, register: int = REG) -> bytes:
    """Load a property of the packet's connection."""
    return _expression("ct", be32(1, register), be32(2, key))


def destination_type(register: int = REG) -> bytes:
    """``fib daddr type``: what kind of address the destination is to this host."""
    return _expression("fib", be32(1, register), be32(2, _FIB_ADDRTYPE), be32(3, _FIB_DADDR))


def verdict(code: int) -> bytes:
    """``accept``, ``drop`` or ``return``."""
    return _expression(
        "immediate", be32(1, _VERDICT_REGISTER), nested(2, nested(2, attribute(1, struct.pack(">i", code))))
    )


def jump(chain: str) -> bytes:
    """Go through another chain and come back."""
    target = nested(2, attribute(1, struct.pack(">i", JUMP)), text(2, chain))
    return _expression("immediate", be32(1, _VERDICT_REGISTER), nested(2, target))


def dnat(family: int, address: int, port: int) -> bytes:
    """Change the destination to the address (of ``family``) and port in these registers."""
    return _expression("nat", be32(1, 1), be32(2, family), be32(3, address), be32(5, port))


def masquerade() -> bytes:
    """Change the source to the outgoing interface's address."""
    return _expression("masq")


def ifname(name: str) -> bytes:
    """An interface name as a key: NUL-padded to 16 bytes."""
    return name.encode().ljust(IFNAME_SIZE, b"\0")
