"""Variables in a Dockerfile: quotes, escapes, ``$x``, ``${x}`` and the forms with an operator.

Rule: one scanner does quote removal and substitution in one pass, as a shell does, so that a value never gets scanned a
second time. Source: docs.docker.com "Dockerfile reference", Environment replacement.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

Lookup = Callable[[str], str | None]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-]")


class ExpansionError(ValueError):
    """A word that cannot be expanded; the text says why."""


class Expander:
    """Expands words with one set of variables.

    ``used`` collects names looked up, ``unset`` those without a value, unless the word says what is to be then.
    """

    def __init__(self, lookup: Lookup, escape: str = "\\", *, quotes: bool = True) -> None:
        """``quotes`` off leaves quotes and escapes as they are (heredocs): only ``\\$`` is special then."""
        self._lookup = lookup
        self._escape = escape
        self._quotes = quotes
        self.used: set[str] = set()
        self.unset: set[str] = set()

    def word(self, text: str) -> str:
        """``text`` expanded as one word. Raises ``ExpansionError``."""
        return "".join(piece for piece, _ in _Scanner(self, text, self._escape, self._quotes).pieces())

    def words(self, text: str) -> list[str]:
        """``text`` expanded and split at unquoted white space; white space out of a variable splits too."""
        words: list[str] = []
        current: list[str] | None = None
        for piece, quoted in _Scanner(self, text, self._escape, self._quotes).pieces():
            if quoted:
                current = [*(current or ()), piece]
                continue
            parts = re.split(r"(\s+)", piece)
            for part in parts:
                if part and not part.isspace():
                    current = [*(current or ()), part]
                elif part and current is not None:
                    words.append("".join(current))
                    current = None
        if current is not None:
            words.append("".join(current))
        return words

    def value(self, name: str, *, may_be_unset: bool = False) -> str | None:
        """Look up ``name`` and remember it."""
        self.used.add(name)
        value = self._lookup(name)
        if value is None and not may_be_unset:
            self.unset.add(name)
        return value


class _Scanner:
    """One pass over one text."""

    def __init__(self, owner: Expander, text: str, escape: str, quotes: bool) -> None:
        self._owner = owner
        self._text = text
        self._escape = escape
        self._quotes = quotes
        self._at = 0

    def pieces(self, stop: str = "") -> list[tuple[str, bool]]:
        """(text, quoted) up to an unquoted character of ``stop``, which is not consumed."""
        out: list[tuple[str, bool]] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            if stop and char in stop:
                return out
            if self._quotes and char == "'":
                out.append((self._single(), True))
            elif self._quotes and char == '"':
                out.append((self._double(), True))
            elif char == self._escape:
                out.append((self._escaped(), True))
            elif char == "$":
                out.append((self._dollar(), False))
            else:
                out.append((char, False))
                self._at += 1
        if stop:
            raise ExpansionError(f"unexpected end of statement while looking for matching {stop[0]}: {self._text!r}")
        return out

    def _single(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise ExpansionError(f"unexpected end of statement while looking for matching single-quote: {self._text!r}")
        inner, self._at = self._text[self._at + 1 : end], end + 1
        return inner

    def _double(self) -> str:
        self._at += 1
        out: list[str] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == '"':
                self._at += 1
                return "".join(out)
            if char == "$":
                out.append(self._dollar())
            elif char == self._escape and self._text[self._at + 1 : self._at + 2] in ('"', "$", self._escape):
                out.append(self._text[self._at + 1])
                self._at += 2
            else:
                out.append(char)
                self._at += 1
        raise ExpansionError(f"unexpected end of statement while looking for matching double-quote: {self._text!r}")

    def _escaped(self) -> str:
        following = self._text[self._at + 1 : self._at + 2]
        if not self._quotes and following not in ("$", self._escape):
            self._at += 1
            return self._escape
        self._at += 2 if following else 1
        return following or self._escape

    def _dollar(self) -> str:
        self._at += 1
        if self._text[self._at : self._at + 1] == "{":
            self._at += 1
            return self._braced()
        match = _NAME.match(self._text, self._at)
        if match is None:
            return "$"
        self._at = match.end()
        return self._owner.value(match[0]) or ""

    def _braced(self) -> str:
        match = _NAME.match(self._text, self._at)
        if match is None:
            raise ExpansionError(f"bad substitution in {self._text!r}")
        name = match[0]
        self._at = match.end()
        operator = self._operator()
        if not operator:
            self._close()
            return self._owner.value(name) or ""
        if operator in ("/", "//"):
            return self._replaced(name, operator)
        word = self._inner("}")
        self._close()
        return self._applied(name, operator, word)

    def _operator(self) -> str:
        for operator in (":-", ":+", ":?", "##", "%%", "//", "-", "+", "?", "#", "%", "/"):
            if self._text.startswith(operator, self._at):
                self._at += len(operator)
                return operator
        if self._text[self._at : self._at + 1] == ":":
            following = self._text[self._at + 1 : self._at + 2]
            raise ExpansionError(f"unsupported modifier ({following}) in substitution: {self._text!r}")
        return ""

    def _close(self) -> None:
        if self._text[self._at : self._at + 1] != "}":
            raise ExpansionError(f"syntax error: missing '}}' in {self._text!r}")
        self._at += 1

    def _inner(self, stop: str) -> str:
        return "".join(piece for piece, _ in self.pieces(stop))

    def _applied(self, name: str, operator: str, word: str) -> str:
        kind = operator[-1]
        value = self._owner.value(name, may_be_unset=kind in "-+?")
        missing = value is None or (operator[0] == ":" and not value)
        if kind == "-":
            return word if missing or value is None else value
        if kind == "+":
            return "" if missing else word
        if kind == "?":
            if missing or value is None:
                raise ExpansionError(f"{name}: {word or 'not allowed to be unset'}")
            return value
        return _trimmed(value or "", word, operator)

    def _replaced(self, name: str, operator: str) -> str:
        pattern = self._inner("/}")
        replacement = ""
        if self._text[self._at : self._at + 1] == "/":
            self._at += 1
            replacement = self._inner("}")
        self._close()
        value = self._owner.value(name) or ""
        regex = re.compile(_regex(pattern), re.DOTALL)
        return regex.sub(lambda _: replacement, value, count=0 if operator == "//" else 1)


def _regex(pattern: str) -> str:
    """A shell pattern (``*`` and ``?``) as a regular expression that is not anchored."""
    translated = fnmatch.translate(pattern)
    return re.sub(r"\\[zZ]$", "", translated)


def _trimmed(value: str, pattern: str, operator: str) -> str:
    """``#``/``##`` cut the shortest/longest prefix that matches, ``%``/``%%`` the suffix."""
    matches = re.compile(fnmatch.translate(pattern), re.DOTALL).match
    ends = range(len(value) + 1)
    if operator[0] == "#":
        order = ends if operator == "#" else reversed(ends)
        return next((value[n:] for n in order if matches(value[:n])), value)
    order = reversed(ends) if operator == "%" else ends
    return next((value[:n] for n in order if matches(value[n:])), value)
