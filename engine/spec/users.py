"""Who a container's process is: ``name|uid[:group|gid]`` against the container's own passwd and group files.

Rule: numbers are always ids, never names; a name that the files do not have is an error, a number they do not have is
taken as it is. Source: Dockerfile reference (USER), passwd(5), group(5), and Docker's observable behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from engine.spec.rootfs import Rootfs
from oci.errors import InvalidArgument

MAX_ID = (1 << 31) - 1


class Passwd(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class Group(NamedTuple):
    name: str
    gid: int
    members: tuple[str, ...]


class User(NamedTuple):
    """A resolved user; ``groups`` are supplementary groups, without ``gid`` itself."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def parse_passwd(content: bytes | None) -> list[Passwd]:
    """The well-formed lines of ``/etc/passwd``."""
    users = []
    for fields in _lines(content):
        uid, gid = _number(fields, 2), _number(fields, 3)
        if fields[0] and uid is not None and gid is not None:
            users.append(Passwd(fields[0], uid, gid, fields[5] if len(fields) > 5 else ""))
    return users


def parse_group(content: bytes | None) -> list[Group]:
    """The well-formed lines of ``/etc/group``."""
    groups = []
    for fields in _lines(content):
        gid = _number(fields, 2)
        if fields[0] and gid is not None:
            members = tuple(filter(None, fields[3].split(","))) if len(fields) > 3 else ()
            groups.append(Group(fields[0], gid, members))
    return groups


def _lines(content: bytes | None) -> Iterable[list[str]]:
    for line in (content or b"").decode("utf-8", "surrogateescape").splitlines():
        text = line.strip()
        if text and not text.startswith("#"):
            yield text.split(":")


def _number(fields: list[str], index: int) -> int | None:
    return _id(fields[index]) if index < len(fields) else None


def _id(text: str) -> int | None:
    """A decimal id, sign allowed as Docker allows it; None when the text is a name."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    return int(text) if digits.isascii() and digits.isdigit() else None


def _in_range(value: int) -> int:
    if not 0 <= value <= MAX_ID:
        raise InvalidArgument(f"uids and gids must be in range 0-{MAX_ID}")
    return value


def resolve(text: str, users: list[Passwd], groups: list[Group], extra: Iterable[str] = ()) -> User:
    """The user that ``text`` ("" is root) means; ``extra`` is ``--group-add``. InvalidArgument in Docker's words."""
    name, separator, group_name = text.partition(":")
    uid = _id(name)
    wanted = 0 if not name else uid
    match = next((u for u in users if (u.uid == wanted if wanted is not None else u.name == name)), None)
    if match is None and wanted is None:
        raise InvalidArgument(f"unable to find user {name}: no matching entries in passwd file")
    found = match or Passwd("", _in_range(wanted or 0), 0, "/")
    gid, supplementary = found.gid, []
    if separator and group_name:
        gid = _group(group_name, groups)
    elif match is not None:
        supplementary = [g.gid for g in groups if match.name in g.members]
    supplementary += [_group(entry, groups) for entry in extra]
    return User(found.uid, gid, tuple(dict.fromkeys(supplementary)), found.home or "/")


def _group(name: str, groups: list[Group]) -> int:
    number = _id(name)
    for group in groups:
        if group.gid == number if number is not None else group.name == name:
            return group.gid
    if number is None:
        raise InvalidArgument(f"unable to find group {name}: no matching entries in group file")
    return _in_range(number)


def resolve_in(rootfs: Rootfs, text: str, extra: Iterable[str] = ()) -> User:
    """``resolve`` with the files of a root file system that is not mounted."""
    return resolve(text, parse_passwd(rootfs.read("/etc/passwd")), parse_group(rootfs.read("/etc/group")), extra)
