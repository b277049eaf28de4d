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
    """The Dockerfile cannot be used. ``lines`` says where; ``shown`` adds the source with a caret."""

    def __init__(self, message: str, lines: Lines, *, hint: str = "") -> None:
        super().__init__(f"dockerfile parse error on line {lines.first}: {message}", hint=hint)
        self.lines = lines

    def shown(self, source: str, name: str = "Dockerfile", context: int = 2) -> str:
        """The lines around the error, those concerned marked, in the form docker shows."""
        rows = source.splitlines()
        first, last = max(1, self.lines.first - context), min(len(rows), self.lines.last + context)
        width = len(str(last))
        out = [f"{name}:{self.lines.first}", "-" * 20]
        for number in range(first, last + 1):
            mark = ">>>" if self.lines.first <= number <= self.lines.last else "   "
            out.append(f" {number:>{width}} | {mark} {rows[number - 1]}".rstrip())
            if number == self.lines.last:
                text = rows[number - 1]
                indent = len(text) - len(text.lstrip())
                out.append(f" {' ' * width} | {' ' * 4}{' ' * indent}{'^' * max(1, len(text.strip()))}")
        return "\n".join([*out, "-" * 20, f"ERROR: {self.message}"])
