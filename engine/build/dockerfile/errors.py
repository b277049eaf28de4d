"""Errors and warnings of a Dockerfile, which show the line."""

from __future__ import annotations

from typing import NamedTuple

from oci.errors import InvalidArgument


class Lines(NamedTuple):
    """First and last line of something, from 1."""

    first: int
    last: int


class Warning(NamedTuple):
    """A finding that does not stop the build; ``rule`` is Docker's name of the check."""

    rule: str
    text: str
    lines: Lines


class DockerfileError(InvalidArgument):
    """The Dockerfile cannot be used: ``reason`` says why, ``lines`` where; ``excerpt``, once known, shows it."""

    def __init__(self, message: str, lines: Lines, *, hint: str = "") -> None:
        super().__init__(f"dockerfile parse error on line {lines.first}: {message}", hint=hint)
        self.reason = message
        self.lines = lines
        self.excerpt = ""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.excerpt}" if self.excerpt else super().__str__()


def excerpt(source: str, name: str, lines: Lines, context: int = 2) -> str:
    """The rows of ``source`` around ``lines``, those meant marked and underlined, in the form docker shows."""
    rows = source.splitlines() or [""]
    last = min(lines.last, len(rows))
    shown = range(max(1, lines.first - context), min(len(rows), last + context) + 1)
    width = len(str(shown[-1])) if shown else 1
    out = [f"{name}:{lines.first}", "-" * 20]
    for number in shown:
        text = rows[number - 1].rstrip()
        mark = ">>>" if lines.first <= number <= last else "   "
        out.append(f" {number:>{width}} | {mark} {text}".rstrip())
        if number == last:
            bare = text.lstrip()
            out.append(f" {' ' * width} |     {' ' * (len(text) - len(bare))}{'^' * max(1, len(bare))}")
    return "\n".join([*out, "-" * 20])
