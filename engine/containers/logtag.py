"""``--log-opt tag=``: Docker's markup for naming a container in its log, with the fields and functions of its manual.

Rule: what Go's text/template would refuse is refused when the container is made, not found out when it logs. Source:
"Customize log driver output" and "Format command and log output" in Docker's manual.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from oci.errors import InvalidArgument

_ACTION = re.compile(r"\{\{-?(.*?)-?\}\}", re.DOTALL)
_WORD = re.compile(r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<number>-?\d+)|(?P<name>\.?\w+)|(?P<sign>[()|]))')

FIELDS = (
    "ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName", "Command", "Hostname", "LogPath",
    "ContainerID", "ContainerName", "ContainerEntrypoint", "ContainerImageID", "ContainerImageName",
)  # fmt: skip
MAPS = ("ContainerLabels", "ExtraAttributes", "Config")


def _truncate(text: str, length: int) -> str:
    return text[:length]


def _pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if text else text


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "lower": str.lower,
    "upper": str.upper,
    "title": str.title,
    "split": str.split,
    "join": lambda parts, separator: separator.join(parts),
    "json": lambda value: json.dumps(value, separators=(",", ":")),
    "truncate": _truncate,
    "pad": _pad,
    "index": lambda found, *keys: _indexed(found, keys),
    "print": lambda *values: "".join(str(value) for value in values),
}


def _indexed(found: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        found = found.get(key, "") if isinstance(found, dict) else found[key]
    return found


class _Pipeline:
    """One action's words, evaluated while they are read."""

    def __init__(self, source: str, fields: dict[str, Any]) -> None:
        self._fields = fields
        self._words: list[str] = []
        at = 0
        while source[at:].strip():
            match = _WORD.match(source, at)
            if match is None:
                raise ValueError(f"unexpected {source[at:].strip()!r}")
            self._words.append(match[0].strip())
            at = match.end()

    def value(self) -> Any:
        """What the whole action stands for."""
        result = self._piped()
        if self._words:
            raise ValueError(f"unexpected {self._words[0]!r}")
        return result

    def _piped(self) -> Any:
        result = self._command(())
        while self._words and self._words[0] == "|":
            self._words.pop(0)
            result = self._command((result,))
        return result

    def _command(self, piped: tuple[Any, ...]) -> Any:
        if not self._words:
            raise ValueError("missing value")
        name = self._words[0]
        if name.isidentifier():
            function = _FUNCTIONS.get(name)
            if function is None:
                raise ValueError(f"function {name!r} not defined")
            self._words.pop(0)
            return function(*self._operands(), *piped)
        first, *rest = self._operands()
        if (rest and rest != [None]) or piped:
            raise ValueError(f"{name} takes no arguments")
        return first

    def _operands(self) -> list[Any]:
        found = []
        while self._words and self._words[0] not in (")", "|"):
            found.append(self._operand())
        return found

    def _operand(self) -> Any:
        word = self._words.pop(0)
        if word == "(":
            value = self._piped()
            if not self._words or self._words.pop(0) != ")":
                raise ValueError("unclosed parenthesis")
        elif word.startswith('"'):
            return json.loads(word)
        elif word.lstrip("-").isdecimal():
            return int(word)
        elif word == "nil":
            return None
        elif word.startswith(".") and word[1:] in self._fields:
            value = self._fields[word[1:]]
        else:
            raise ValueError(f"{word} is not a field")
        while isinstance(value, dict) and self._words and self._words[0].startswith("."):
            value = value.get(self._words.pop(0)[1:], "")
        return value


def expand(template: str, fields: dict[str, Any]) -> str:
    """``template`` with its actions filled in. Raises ``InvalidArgument``."""

    def filled(action: re.Match[str]) -> str:
        try:
            return str(_Pipeline(action[1], fields).value())
        except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            raise InvalidArgument(
                f"invalid value for tag: {template!r}: {error}",
                hint="fields are {{.ID}}, {{.Name}}, {{.ImageName}} and others of Docker's manual",
            ) from None

    return _ACTION.sub(filled, template)


def check(template: str) -> None:
    """Raises ``InvalidArgument`` for what cannot be filled in."""
    expand(template, {**dict.fromkeys(FIELDS, "x"), **{name: {} for name in MAPS}})
