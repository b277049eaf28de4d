"""``.dockerignore``: which files of a context stay behind.

Rule: patterns are matched in order and the last one that matches decides; ``!`` brings back. Source: docs.docker.com
"Build context", .dockerignore files; Go's ``filepath.Match`` with ``**`` added.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

from oci.errors import InvalidArgument

_SPECIAL = set(".+()|{}$^")


class IgnoreRules:
    """Compiled patterns. ``ignored`` answers per path, ``may_hold_exceptions`` whether a directory must be walked."""

    def __init__(self, lines: Iterable[str]) -> None:
        """``lines`` of the file; raises ``InvalidArgument`` for a pattern that cannot be."""
        self._rules: list[tuple[bool, re.Pattern[str], str]] = []
        for number, raw in enumerate(lines, 1):
            line = raw.removeprefix("\ufeff").strip() if number == 1 else raw.strip()
            if not line or line.startswith("#"):
                continue
            keep = line.startswith("!")
            pattern = line[1:].strip() if keep else line
            if not pattern:
                raise InvalidArgument(f'.dockerignore line {number}: illegal exclusion pattern: "!"')
            cleaned = posixpath.normpath(pattern).lstrip("/")
            if cleaned not in ("", "."):
                self._rules.append((keep, _compiled(cleaned, number), cleaned))

    def __bool__(self) -> bool:
        return bool(self._rules)

    @property
    def patterns(self) -> list[str]:
        """The patterns, cleaned, in order, exceptions with their ``!``."""
        return [f"!{pattern}" if keep else pattern for keep, _, pattern in self._rules]

    def ignored(self, path: str) -> bool:
        """Whether ``path`` (relative, no leading slash) stays behind; a match of a parent directory counts."""
        names = path.strip("/").split("/")
        prefixes = ["/".join(names[: n + 1]) for n in range(len(names))]
        out = False
        for keep, regex, _ in self._rules:
            if keep == out and any(regex.fullmatch(prefix) for prefix in prefixes):
                out = not keep
        return out

    def may_hold_exceptions(self, directory: str) -> bool:
        """Whether something below an ignored directory could be brought back by a ``!`` pattern."""
        parts = directory.strip("/").split("/")
        return any(keep and _could_reach(pattern.split("/"), parts) for keep, _, pattern in self._rules)


def _could_reach(pattern: list[str], directory: list[str]) -> bool:
    for wanted, name in zip(pattern, directory, strict=False):
        if wanted == "**":
            return True
        if not re.fullmatch(_translated(wanted, 0), name):
            return False
    return True


def _compiled(pattern: str, number: int) -> re.Pattern[str]:
    try:
        return re.compile(_translated(pattern, number))
    except re.error as error:
        raise InvalidArgument(f".dockerignore line {number}: syntax error in pattern {pattern!r}: {error}") from None


def _translated(pattern: str, number: int) -> str:
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "*":
            if pattern.startswith("**", at):
                at += 2
                if pattern[at : at + 1] == "/":
                    at += 1
                    out.append("(?:.*/)?")
                else:
                    out.append(".*")
                continue
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "\\":
            at += 1
            if at >= len(pattern):
                raise InvalidArgument(f".dockerignore line {number}: pattern {pattern!r} ends in a backslash")
            out.append(re.escape(pattern[at]))
        elif char == "[":
            end = pattern.find("]", at + 2)
            if end < 0:
                raise InvalidArgument(f".dockerignore line {number}: pattern {pattern!r} has no closing ]")
            inner = pattern[at + 1 : end].replace("\\", "\\\\")
            out.append(f"[{inner}]")
            at = end
        else:
            out.append("\\" + char if char in _SPECIAL else char)
        at += 1
    return "".join(out)
