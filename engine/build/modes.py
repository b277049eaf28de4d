"""``--chmod``: octal or symbolic, as chmod(1) takes it."""

from __future__ import annotations

import re
import stat
from typing import NamedTuple

from oci.errors import InvalidArgument

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")
_SHIFT = {"u": 6, "g": 3, "o": 0}
_BITS = {"r": 4, "w": 2, "x": 1}


class ModeChange(NamedTuple):
    """A change of permission bits: ``octal``, else ``clauses`` of (who, operator, what)."""

    octal: int | None
    clauses: tuple[tuple[str, str, str], ...] = ()

    def apply(self, mode: int, is_dir: bool) -> int:
        """Permission bits (with set-id and sticky bits) after the change."""
        bits = stat.S_IMODE(mode)
        if self.octal is not None:
            return self.octal
        for who, operator, what in self.clauses:
            bits = _applied(bits, who, operator, what, is_dir)
        return bits


def parse_mode(text: str) -> ModeChange:
    """Raises ``InvalidArgument``."""
    if re.fullmatch(r"[0-7]{1,5}", text) and int(text, 8) <= 0o7777:
        return ModeChange(int(text, 8))
    clauses: list[tuple[str, str, str]] = []
    for part in text.split(","):
        match = _CLAUSE.fullmatch(part)
        if match is None:
            raise InvalidArgument(f"invalid chmod parameter: {text!r}", hint="octal (0755) or symbolic (u=rwx,go=r)")
        who = "ugo" if match[1] in ("", "a") or "a" in match[1] else match[1]
        clauses += [(who, operator, what) for operator, what in _ACTION.findall(match[2])]
    return ModeChange(None, tuple(clauses))


def _applied(bits: int, who: str, operator: str, what: str, is_dir: bool) -> int:
    value = 0
    for one in who:
        shift = _SHIFT[one]
        if what in ("u", "g", "o"):
            value |= (bits >> _SHIFT[what] & 7) << shift
            continue
        for letter in what:
            if letter in _BITS:
                value |= _BITS[letter] << shift
            elif letter == "X" and (is_dir or bits & 0o111):
                value |= 1 << shift
            elif letter == "s" and one in "ug":
                value |= stat.S_ISUID if one == "u" else stat.S_ISGID
            elif letter == "t" and one == "o":
                value |= stat.S_ISVTX
    if operator == "+":
        return bits | value
    if operator == "-":
        return bits & ~value
    cleared = sum(7 << _SHIFT[one] for one in set(who))
    cleared |= stat.S_ISUID if "u" in who else 0
    cleared |= stat.S_ISGID if "g" in who and not is_dir else 0
    return bits & ~cleared | value
