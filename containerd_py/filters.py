"""containerd's filter language (``filters`` package): which objects a list or a subscription is about.

Rule: an expression that containerd takes is taken here and selects the same objects; anything else is refused as
``InvalidArgument`` with the place where it went wrong.

    filter    := selector ("," selector)*            all must hold; several filters are alternatives
    selector  := path [("==" | "!=" | "~=") value]   without an operator: the field is there and not empty
    path      := field ("." field)*
    field     := quoted | (letter | digit | "_" | "-")+
    value     := quoted | any characters but white space and ","

White space before a field, an operator or a value is passed over; elsewhere it is an error.
Quoted is a Go string in double quotes. A value of ``~=`` may also stand between ``|`` or ``/``, backslashes unchanged.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from oci.errors import InvalidArgument

Lookup = Callable[[tuple[str, ...]], str | None]
"""The value of the field at a path; None when the object has no such field."""

_SPACE = re.compile(r"\s*")
_FIELD = re.compile(r"[A-Za-z0-9_-]+")
_OPERATOR = re.compile(r"[=!~]=")
_VALUE = re.compile(r"[^\s,]+")
_QUOTED = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_RAW_QUOTED = {"|": re.compile(r"\|([^|]*)\|"), "/": re.compile(r"/((?:[^/\\]|\\.)*)/")}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))")
_SIMPLE_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"'}


class Selector(NamedTuple):
    """One condition; ``operator`` is "" for presence."""

    path: tuple[str, ...]
    operator: str
    value: str
    pattern: re.Pattern[str] | None = None

    def matches(self, lookup: Lookup) -> bool:
        found = lookup(self.path)
        match self.operator:
            case "==":
                return found == self.value
            case "!=":
                return found != self.value
            case "~=":
                assert self.pattern is not None
                return self.pattern.search(found or "") is not None
        return found is not None


class Parser:
    """Recursive descent over one expression."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def filter(self) -> tuple[Selector, ...]:
        selectors = [self._selector()]
        while self._take(","):
            selectors.append(self._selector())
        if self.at < len(self.text):
            raise self._error("expected , or the end")
        return tuple(selectors)

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._take("."):
            path.append(self._field())
        if self.at == len(self.text) or self.text[self.at] == ",":
            return Selector(tuple(path), "", "")
        self._skip_space()
        operator = _OPERATOR.match(self.text, self.at)
        if operator is None:
            raise self._error("expected an operator (==, != or ~=)")
        self.at = operator.end()
        value = self._value(operator[0])
        if operator[0] != "~=":
            return Selector(tuple(path), operator[0], value)
        try:
            return Selector(tuple(path), operator[0], value, re.compile(value))
        except re.error as error:
            raise self._error(f"invalid regular expression: {error}") from None

    def _field(self) -> str:
        self._skip_space()
        if self.text.startswith('"', self.at):
            return self._quoted()
        found = _FIELD.match(self.text, self.at)
        if found is None:
            raise self._error("expected a field")
        self.at = found.end()
        return found[0]

    def _value(self, operator: str) -> str:
        self._skip_space()
        first = self.text[self.at : self.at + 1]
        if first == '"':
            return self._quoted()
        if operator == "~=" and first in _RAW_QUOTED:
            found = _RAW_QUOTED[first].match(self.text, self.at)
            if found is None:
                raise self._error(f"no closing {first}")
            self.at = found.end()
            return found[1].replace(f"\\{first}", first)
        found = _VALUE.match(self.text, self.at)
        if found is None:
            raise self._error("expected a value")
        self.at = found.end()
        return found[0]

    def _quoted(self) -> str:
        found = _QUOTED.match(self.text, self.at)
        if found is None:
            raise self._error("no closing quote")
        value = _ESCAPE.sub(self._unescape, found[1])
        self.at = found.end()
        return value

    def _unescape(self, found: re.Match[str]) -> str:
        two, four, eight, octal, simple = found.groups()
        number = int(two or four or eight or "0", 16) if not octal else int(octal, 8)
        if simple is None and number <= 0x10FFFF:
            return chr(number)
        if simple in _SIMPLE_ESCAPES:
            return _SIMPLE_ESCAPES[simple]
        raise self._error(f"unknown escape {found[0]}")

    def _skip_space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def _take(self, character: str) -> bool:
        if not self.text.startswith(character, self.at):
            return False
        self.at += 1
        return True

    def _error(self, why: str) -> InvalidArgument:
        return InvalidArgument(f"filter {self.text!r}: {why} at character {self.at + 1}")


@functools.lru_cache(256)
def parse(expression: str) -> tuple[Selector, ...]:
    """The conditions of one expression. Raises ``InvalidArgument``."""
    return Parser(expression).filter()


def compile_filters(expressions: tuple[str, ...]) -> Callable[[Lookup], bool]:
    """Whether an object matches any of ``expressions``; all objects match none. Raises ``InvalidArgument``."""
    alternatives = [parse(expression) for expression in expressions if expression]
    if len(alternatives) < len(expressions) or not expressions:
        return lambda lookup: True

    def matches(lookup: Lookup) -> bool:
        return any(all(selector.matches(lookup) for selector in filter) for filter in alternatives)

    return matches


def lookup_in(fields: Mapping[str, str], labels: Mapping[str, str]) -> Lookup:
    """A lookup over plain fields (dotted names; "" counts as absent) and ``labels.<key>``."""

    def lookup(path: tuple[str, ...]) -> str | None:
        if path[0] == "labels":
            return labels.get(".".join(path[1:]))
        return fields.get(".".join(path)) or None

    return lookup
